"The scorecard and what stands beside it: from saved answers by the metric packages alone, from saved adapters by peft and transformers."
import collections, json, math, re, statistics, string
import numpy as np, pytest, sacrebleu, torch
from pathlib import Path
from hypothesis import given, strategies as st
from peft import PeftModel
from rouge_score import rouge_scorer
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from conftest import client_data, sums
from fedai.algorithms import get_server
from fedai.config import ConfigError, FedConfig
from fedai.data.clients import ClientData
from fedai.evaluate.scorecard import gain_table, score_table
from fedai.evaluate.metrics import paired_bootstrap, scorers, text_scores
from fedai.models import get_base_model, get_tokenizer
from fedai.data.prompts import Prompter

# on purpose, so that some answers come out right
pytestmark = pytest.mark.filterwarnings('ignore:.*of its test questions are in its training data')

def card_of(cfg): return json.loads((Path(cfg.output_dir)/'scorecard.json').read_text())
def said_of(cfg): return [json.loads(o) for o in (Path(cfg.output_dir)/'generations.jsonl').read_text().splitlines()]
def run(cfg, data, **kw):
    s = get_server(cfg, data, callbacks=[], **kw)
    s.fit()
    return s

def mixed_data(K):
    "Clients tested on what they train on, so that some answers are right; the last two also have several right answers, and choices."
    data = [{'train': sums(k, 6), 'test': sums(k, 4)} for k in range(K)]
    for d in data[-2:]:
        task = d['test'][0]['task']
        fruit = dict(instruction='Which is a fruit?', output='apple', choices=['car','apple','house on a hill'], task=task)
        colour = dict(instruction='Name a colour.', output='red', references=['red','a deep blue','3'], task=task)
        d['test'] = [*d['test'],fruit,colour]
    return data

# the metrics, written plainly over the packages

def references(o): return o.get('references') or [o['output']]

def squad_words(text): return re.sub(r'\b(a|an|the)\b', ' ', ''.join(c for c in text.lower() if c not in set(string.punctuation))).split()

def squad_f1(answer, right):
    a,b = squad_words(answer),squad_words(right)
    same = sum((collections.Counter(a) & collections.Counter(b)).values())
    if not a or not b: return float(a == b)
    if not same: return 0.
    precision,recall = same/len(a),same/len(b)
    return 2*precision*recall/(precision + recall)

def by_hand(lines, answers, chosen=None):
    kinds = ['rouge1','rouge2','rougeL','rougeLsum']
    rouge = rouge_scorer.RougeScorer(kinds)
    out = {k: np.mean([max(rouge.score(r, a)[k].fmeasure for r in references(o)) for o,a in zip(lines, answers)]) for k in kinds}
    out['exact_match'] = np.mean([any(a.strip() == r.strip() for r in references(o)) for o,a in zip(lines, answers)])
    out['token_f1'] = np.mean([max(squad_f1(a, r) for r in references(o)) for o,a in zip(lines, answers)])
    n = max(len(references(o)) for o in lines)
    columns = [[references(o)[j] if j < len(references(o)) else None for o in lines] for j in range(n)]
    out['bleu'] = sacrebleu.corpus_bleu(answers, columns, use_effective_order=True).score
    out['chrf'] = sacrebleu.corpus_chrf(answers, columns).score
    asked = [(o,c) for o,c in zip(lines, chosen or []) if c]
    for j,k in enumerate(('choice_accuracy','choice_accuracy_norm')):
        if asked: out[k] = np.mean([c[j] == o['output'] for o,c in asked])
    return out

def same(got, want):
    assert {k: v for k,v in got.items() if k not in ('task','n','loss','holdout_loss')} == pytest.approx(want, abs=1e-9)

words = st.lists(st.sampled_from('The a an cat, dog 7. seven Paris runs!\n été'.split(' ')), max_size=7).map(' '.join)

@given(st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=3)), min_size=1, max_size=5))
def test_several_references(pairs):
    lines = [dict(output=r[0], **({'references': r} if len(r) > 1 else {})) for _,r in pairs]
    answers,right = [p for p,_ in pairs],[r for _,r in pairs]
    assert text_scores(answers, [references(o) for o in lines]) == pytest.approx(by_hand(lines, answers), abs=1e-9)
    if all(len(r) == 1 for r in right): assert text_scores(answers, [r[0] for r in right]) == text_scores(answers, right)

# losses, by peft and transformers

class Plain:
    "A saved adapter in a model of its own, in float64."
    def __init__(self, cfg, state, folder):
        self.model = PeftModel.from_pretrained(get_base_model(cfg), str(folder)).double().eval()
        self.prompter = Prompter(get_tokenizer(cfg))
        if state is not None:
            own = {n.replace('.default', ''): p for n,p in self.model.named_parameters() if 'lora_' in n}
            assert own.keys() == state.keys()
            for n,p in own.items(): p.data.copy_(state[n])

    @torch.no_grad()
    def nats(self, ex):
        "The answer's tokens, its end among them: (sum of their losses, how many)."
        e = self.prompter.encode(ex)
        logp = self.model(torch.tensor([e.prompt + e.answer])).logits[0].log_softmax(-1)
        return -sum(logp[len(e.prompt)+i-1, t].item() for i,t in enumerate(e.answer)),len(e.answer)

    def loss(self, examples):
        each = [self.nats(o) for o in examples]
        return sum(s for s,_ in each)/sum(n for _,n in each)

def adapter(cfg, s, i): return Plain(cfg, None, s.store.path(i))

def state(s, i): return {n: t.double() for n,t in load_file(s.store.path(i)/'adapter_model.safetensors').items()}

def mean_state(states): return {n: sum(o[n] for o in states)/len(states) for n in states[0]}

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A run of five clients, of whom one took no part, tested with all there is; its answers are half right."

    cfg = FedConfig(model='tiny', device='cpu', num_clients=5, m=.8, rounds=1, local_step=60, batch_size=3, max_new_tokens=6, r=4, lr=1e-2,
                    coupling=.05, output_dir=str(tmp_path_factory.mktemp('trained')/'run'))
    data = mixed_data(5)
    data[1]['test'] = data[0]['test']   # clients that share their questions
    s = run(cfg, data, holdout_ds=sums(7, 3))
    s.test(baselines=True)
    return cfg,data,s

def chosen_of(answers): return [(o['chosen'],o['chosen_norm']) if 'chosen' in o else None for o in answers]

def test_scores_come_from_the_saved_answers(trained):
    cfg,data,s = trained
    card,said = card_of(cfg),said_of(cfg)
    asked = [(i,e['instruction'],e['output']) for i,d in enumerate(data) for e in d['test']]
    assert [(o['client'],o['instruction'],o['output']) for o in said] == asked
    for i in range(5):
        lines = [o for o in said if o['client'] == i]
        chosen = chosen_of(lines)
        assert [c is not None for c in chosen] == ['choices' in e for e in data[i]['test']]
        c = card['clients'][str(i)]
        assert (c['n'],c['task']) == (len(data[i]['test']), f'plus{(0 if i == 1 else i)%2}')
        same(c, by_hand(lines, [o['generated'] for o in lines], chosen))
        for part in ('base','average'):
            answers = [o[part] for o in lines]
            same(card[part]['clients'][str(i)], by_hand(lines, [o['generated'] for o in answers], chosen_of(answers)))
        counts,got = collections.Counter(e['output'] for e in data[i]['train']),card['commonest']['clients'][str(i)]
        tied = [by_hand(lines, [a]*len(lines)) for a,n in counts.items() if n == max(counts.values())]
        assert any(got['bleu'] == pytest.approx(want['bleu']) and got['exact_match'] == want['exact_match'] for want in tied)
    hits = [card['clients'][str(i)]['exact_match'] for i in range(5)]
    assert 0 < statistics.mean(hits) < 1, hits   # or these tests would see nothing

def test_summaries_and_gains_by_hand(trained):
    card = card_of(trained[0])
    for part in (card, card['base'], card['average'], card['commonest']):
        rows = list(part['clients'].values())
        shared = [k for k in rows[0] if all(isinstance(r.get(k), float) for r in rows)]
        assert list(part['mean']) == shared and 'choice_accuracy' not in shared
        for k in shared:
            v = sorted((r[k] for r in rows), reverse=k in ('loss','holdout_loss'))   # the worst first; a tenth of five is one
            want = [statistics.mean(v), statistics.median(v), v[0], v[-1]]
            assert [part[f][k] for f in ('mean','median','worst_decile','best')] == pytest.approx(want)
            low,high = part['interval'][k]
            assert min(v) - 1e-9 <= low <= part['mean'][k] + 1e-9 and part['mean'][k] - 1e-9 <= high <= max(v) + 1e-9
    assert set(card['gains']) == {'base','commonest','average'}
    for p,g in card['gains'].items():
        assert set(g) == set(card['mean']) & set(card[p]['mean'])
        for k,o in g.items():
            d = [(card['clients'][i][k] - card[p]['clients'][i][k])*(-1 if k in ('loss','holdout_loss') else 1) for i in card['clients']]
            want = [statistics.mean(d), sum(x > 0 for x in d)/5, sum(x < 0 for x in d)/5]
            assert [o['mean'], o['better']['mean'], o['worse']['mean']] == pytest.approx(want)
    assert card['gains']['base']['loss']['better']['mean'] == .8   # the one that took no part has what the base model has

def test_losses_from_the_saved_adapters(trained):
    cfg,data,s = trained
    card,part = card_of(cfg),[i for i in range(5) if s.latest_model_iter[i]]
    assert len(part) == 4
    start = s.store.path(part[0]).parent.parent/'0'
    start = next(start.rglob('adapter_config.json')).parent
    average = Plain(cfg, mean_state([state(s, i) for i in part]), s.store.path(part[0]))
    base = Plain(cfg, None, start)
    for i in range(5):
        own = adapter(cfg, s, i) if i in part else base
        for who,m in ((card, own), (card['base'], base), (card['average'], average)):
            assert who['clients'][str(i)]['loss'] == pytest.approx(m.loss(data[i]['test']), rel=1e-4)
            assert who['clients'][str(i)]['holdout_loss'] == pytest.approx(m.loss(sums(7, 3)), rel=1e-4)

def test_choices_are_the_likeliest(trained):
    cfg,data,s = trained
    said = [o for o in said_of(cfg) if 'choices' in o]
    assert [o['client'] for o in said] == [3,4]
    for o in said:
        m = adapter(cfg, s, o['client']) if s.latest_model_iter[o['client']] else None
        if m is None: continue
        nats = {c: m.nats(dict(o, output=c))[0] for c in o['choices']}
        assert o['chosen'] == min(nats, key=nats.get) and o['chosen_norm'] == min(nats, key=lambda c: nats[c]/len(c.encode()))

def test_choices_have_the_same_question_where_one_is_long(make_cfg, monkeypatch):
    long = ' '.join(f'{i} things' for i in range(8))
    ex = dict(instruction='Which one of these many things is it that I have in mind?', output='it', choices=['it',long], task='a')
    cfg = make_cfg(num_clients=1, rounds=0, max_length=90)
    s = get_server(cfg, [{'train': sums(0), 'test': [ex, dict(ex, task='b')]}], callbacks=[])
    prompter = Prompter(get_tokenizer(cfg), max_length=90)
    asked = [prompter.encode(dict(ex, output=c)).prompt for c in ex['choices']]
    assert len(asked[0]) > len(asked[1])
    seen,loss = [],s.task.loss
    class Watched:
        def over(self, rows, ks, examples):
            seen.extend(examples)
            return loss(rows.model).over(rows, ks, examples)
    monkeypatch.setattr(s.task, 'loss', lambda model: Watched())
    s.task.choose(s.live, {0: s.client_list[0].test_data})
    assert len(seen) == 4 and all(e.prompt == asked[1] for e in seen)
    monkeypatch.undo()
    assert s.test()[0]['task'] == ''   # it has two

def test_cross_evaluation(trained):
    cfg,data,s = trained
    X = s.cross_evaluation()
    assert np.diag(X) == pytest.approx([c['loss'] for c in s.scorecard['clients'].values()], rel=1e-5)
    models = {i: adapter(cfg, s, i) for i in range(5) if s.latest_model_iter[i]}
    for i,m in models.items(): assert X[i] == pytest.approx([m.loss(d['test']) for d in data], rel=1e-4)
    got = json.loads((Path(cfg.output_dir)/'cross_evaluation.json').read_text())
    assert got['clients'] == list(range(5)) and got['metric'] == 'loss' and np.allclose(got['matrix'], X)
    assert (Path(cfg.output_dir)/'cross_evaluation.png').stat().st_size > 5000
    E = s.cross_evaluation([4,0], 'exact_match')
    assert np.diag(E).tolist() == [s.scorecard['clients'][i]['exact_match'] for i in '40']
    with pytest.raises(ConfigError, match="`metric`: expected one of loss, .*, got 'rouge'"): s.cross_evaluation(metric='rouge')
    with pytest.raises(ConfigError, match='`ids`: expected clients from 0 to 4, got 5'): s.cross_evaluation([5])

def test_engines_agree(make_cfg):
    data = mixed_data(4)
    both = []
    for engine in ('sequential','batched'):
        s = run(make_cfg(engine=engine, lr=1e-2, local_step=8), data, holdout_ds=sums(7, 3))
        s.test(baselines=True)
        newcomer = s.test_newcomers({'late': {'train': sums(5), 'test': sums(5, 4, 40)}})
        both.append((said_of(s.cfg), s.scorecard, s.cross_evaluation(), newcomer))
    (a,ca,xa,na),(b,cb,xb,nb) = both
    assert a == b and np.allclose(xa, xb, rtol=1e-4)
    for a,b in ((ca, cb), *((ca[p], cb[p]) for p in ('base','average','commonest'))):
        for i,m in a['clients'].items():
            m,n = dict(m),dict(b['clients'][i])
            assert m.pop('task') == n.pop('task') and m == pytest.approx(n, rel=1e-4)
    assert {k: v.get('clients') for k,v in na['clients']['late'].items()} == {k: v.get('clients') for k,v in nb['clients']['late'].items()}
    for k in na['starts']:
        for w in ('before','after'): assert na['starts'][k][w] == pytest.approx(nb['starts'][k][w], rel=1e-3, abs=1e-4)

def test_versus_another_run(make_cfg, tmp_path):
    data = mixed_data(3)
    alone = run(make_cfg(num_clients=3, name='local', lr=1e-2, local_step=20), data)
    alone.test()
    s = run(make_cfg(num_clients=3, lr=1e-2, local_step=20, versus=alone.cfg.output_dir, coupling=1.), data)
    s.test()
    card,other = card_of(s.cfg),card_of(alone.cfg)
    assert card['versus']['clients'] == other['clients'] and card['versus']['mean'] == other['mean'] and set(card['gains']) == {'versus'}
    d = [other['clients'][i]['loss'] - card['clients'][i]['loss'] for i in '012']
    assert card['gains']['versus']['loss']['mean'] == pytest.approx(statistics.mean(d)) and d != [0,0,0]
    kept = {n: (Path(s.cfg.output_dir)/n).read_bytes() for n in ('scorecard.json','generations.jsonl')}
    moved = [dict(d, test=d['test'][::-1]) for d in data]
    for folder,what in ((tmp_path/'nowhere', 'with a scorecard.json'),
                        (run_with(make_cfg, client_data(3)), 'tested on the same questions'),
                        (run_with(make_cfg, moved), 'tested on the same questions'),
                        (run_with(make_cfg, client_data(2)), 'the same 3 clients')):
        with pytest.raises(ConfigError, match=f'`versus`: expected .*{what}'): s.test(versus=str(folder))
        assert kept == {n: (Path(s.cfg.output_dir)/n).read_bytes() for n in kept}

def run_with(make_cfg, data):
    s = get_server(make_cfg(num_clients=len(data), rounds=0), data, callbacks=[])
    s.test()
    return s.cfg.output_dir

def test_newcomers(make_cfg):
    data = ClientData([{'train': sums(k, 6), 'test': sums(k, 4)} for k in range(4)])
    def called(task, examples): return [dict(e, task=task) for e in examples]
    late = {'train': called('plus1', sums(2, 6)), 'test': called('plus1', sums(2, 4, 50))}   # client 2's sums by the name of another task
    data.newcomers = {'late': late, 'stranger': {'train': called('other', sums(1, 6)), 'test': called('other', sums(1, 3, 50))}}
    cfg = make_cfg(lr=1e-2, local_step=40, coupling=.05, rounds=2)
    s = run(cfg, data)
    s.test(baselines=True)
    files = lambda: {str(o): o.read_bytes() for o in Path(cfg.output_dir).rglob('*') if o.is_file() and o.name != 'scorecard.json'}
    before = files()
    found = s.test_newcomers()
    assert files() == before and card_of(cfg)['newcomers'] == json.loads(json.dumps(found))
    each = found['clients']
    assert list(each) == ['late','stranger']
    assert list(each['late']) == ['start','average','neighbours','nearest'] and list(each['stranger']) == ['start','average','nearest']
    models = [adapter(cfg, s, i) for i in range(4)]
    first = Plain(cfg, None, next((s.store.path(0).parent.parent/'0').rglob('adapter_config.json')).parent)
    average = Plain(cfg, mean_state([state(s, i) for i in range(4)]), s.store.path(0))
    for name,d in data.newcomers.items():
        nearest = int(np.argmin([m.loss(d['train']) for m in models]))
        assert each[name]['nearest']['clients'] == [nearest]
        want = dict(start=first.loss(d['test']), average=average.loss(d['test']), nearest=models[nearest].loss(d['test']))
        assert {k: each[name][k]['before']['loss'] for k in want} == pytest.approx(want, rel=1e-4)
    assert each['late']['nearest']['clients'] == [2]
    assert each['late']['neighbours']['clients'] == [1,3]
    between = Plain(cfg, mean_state([state(s, i) for i in (1,3)]), s.store.path(0))
    assert each['late']['neighbours']['before']['loss'] == pytest.approx(between.loss(late['test']), rel=1e-4)
    for k,v in found['starts'].items():
        have = [o[k] for o in each.values() if k in o]
        assert v['n'] == len(have) and v['after']['loss'] == pytest.approx(statistics.mean(o['after']['loss'] for o in have))
    # training of its own, from the common start: what a client that trains alone from there comes to
    alone = run(cfg.replace(name='local', num_clients=5, output_dir=cfg.output_dir + '_alone', rounds=1), [*data, late])
    assert each['late']['start']['after']['loss'] == pytest.approx(alone.test()[4]['loss'], rel=1e-4)
    # its test data has no say in where it starts
    again = s.test_newcomers({'late': dict(late, test=sums(3, 4))}, rounds=0)
    def who(starts): return {k: v.get('clients') for k,v in starts.items()}
    assert who(again['clients']['late']) == who(each['late']) and not any('after' in v for v in again['starts'].values())

def test_newcomers_neighbours_by_weight(make_cfg):
    from fedai.evaluate.scorecard import newcomer
    s = run(make_cfg(lr=1e-2, local_step=20), client_data(4))
    late = {'train': sums(2, 6), 'test': sums(2, 4, 50)}
    got = newcomer(s, late, neighbours={0: 1., 3: 3.}, rounds=0)['neighbours']
    w = {n: .25*a + .75*state(s, 3)[n] for n,a in state(s, 0).items()}
    assert got['clients'] == [0,3] and got['before']['loss'] == pytest.approx(Plain(s.cfg, w, s.store.path(0)).loss(late['test']), rel=1e-4)
    for bad,what in (({9: 1.}, 'clients from 0 to 3, got 9'),
                     ({0: 0.}, 'weights above 0, got 0'),
                     ({0: math.nan}, 'weights above 0, got nan')):
        with pytest.raises(ConfigError, match=f'`neighbours`: expected {what}'): newcomer(s, late, neighbours=bad)
    with pytest.raises(ConfigError, match='`newcomers`: expected at least one'): s.test_newcomers()
    found = s.test_newcomers({'late': late}, rounds=0)   # nothing was tested so far
    assert card_of(s.cfg)['newcomers'] == json.loads(json.dumps(found)) and len(card_of(s.cfg)['clients']) == 4

def test_many_clients_are_crossed_in_part(make_cfg):
    s = get_server(make_cfg(num_clients=40, rounds=0), client_data(40), callbacks=[])
    assert s.cross_evaluation().shape == (32,32)
    ids = json.loads((Path(s.cfg.output_dir)/'cross_evaluation.json').read_text())['clients']
    assert (ids[0],ids[-1]) == (0,39) and set(np.diff(ids)) == {1,2}

def test_one_model_for_all_has_no_average_beside_it(make_cfg):
    s = run(make_cfg(name='fedavg'), client_data(4))
    s.test(baselines=True)
    assert 'average' not in s.scorecard and 'base' in s.scorecard['gains']
    got = s.test_newcomers({'late': {'train': sums(5), 'test': sums(5, 4, 40)}}, rounds=0)['clients']['late']
    assert list(got) == ['start','average']
    assert got['average']['before']['loss'] == pytest.approx(adapter(s.cfg, s, 0).loss(sums(5, 4, 40)), rel=1e-4)

def test_before_the_first_round(make_cfg):
    s = get_server(make_cfg(), client_data(4), callbacks=[])
    s.test(baselines=True)
    assert 'average' not in s.scorecard and all(o['mean'] == o['low'] == o['high'] == 0 for o in s.scorecard['gains']['base'].values())
    assert list(s.test_newcomers({'late': {'train': sums(5), 'test': sums(5, 4, 40)}})['clients']['late']) == ['start']

def test_a_scorer_of_ones_own(make_cfg, tmp_path):
    (tmp_path/'judge.py').write_text("from fedai.evaluate.metrics import scorer\n@scorer('plus0')\n@scorer('plus1')\n"
                                     "def near(ex, answer): return 1/(1 + abs(len(answer) - len(ex['output'])))\n")
    try:
        s = run(make_cfg(imports=[str(tmp_path/'judge.py')], lr=1e-2, local_step=20), client_data(4))
        s.test()
        for i in range(4):
            want = np.mean([1/(1 + abs(len(o['generated']) - len(o['output']))) for o in said_of(s.cfg) if o['client'] == i])
            assert s.scorecard['clients'][str(i)]['score'] == pytest.approx(want)
        scorers['plus1'] = lambda ex, answer: 1/0
        with pytest.raises(ZeroDivisionError): s.test()
    finally: scorers.clear()

def test_plain_modules_have_all_of_it(make_cfg):
    X,Y = load_digits(return_X_y=True)
    X = torch.tensor(X/16, dtype=torch.float32)
    def digits(first, end): return [(X[i], int(Y[i])) for i in range(first, end)]
    data = [{'train': digits(k*100, k*100+60), 'test': digits(k*100+60, k*100+90)} for k in range(3)]
    torch.manual_seed(0)
    net = torch.nn.Linear(64, 10)
    cfg = make_cfg(num_clients=3, optimizer='SGD', lr=.3, local_step=20, batch_size=16, coupling=.2)
    s = run(cfg, data, model=net, criterion=torch.nn.CrossEntropyLoss())
    s.test(baselines=True)
    W = [load_file(s.store.path(i)/'model.safetensors') for i in range(3)]
    def right(w, d): return np.mean([(x @ w['weight'].T + w['bias']).argmax().item() == y for x,y in d])
    def accuracies(part): return [part['clients'][str(i)]['accuracy'] for i in range(3)]
    assert accuracies(s.scorecard) == pytest.approx([right(W[i], data[i]['test']) for i in range(3)])
    mean = {n: sum(w[n] for w in W)/3 for n in W[0]}
    assert accuracies(s.scorecard['average']) == pytest.approx([right(mean, data[i]['test']) for i in range(3)])
    crossed = s.cross_evaluation(metric='accuracy')
    assert crossed.ravel() == pytest.approx([right(W[i], data[j]['test']) for i in range(3) for j in range(3)])
    late = {'train': digits(900, 960), 'test': digits(960, 1000)}
    got = s.test_newcomers({'late': late})['clients']['late']
    assert list(got) == ['start','average','nearest'] and got['average']['before']['accuracy'] == pytest.approx(right(mean, late['test']))

numbers = st.lists(st.floats(-10, 10), min_size=2, max_size=12)

@given(numbers, st.floats(-5, 5), st.sampled_from([.5,-2.,3.]), st.integers(1, 4))
def test_bootstrap_moves_and_scales_with_its_numbers(v, shift, factor, groups):
    g = [i%groups for i in range(len(v))]
    a = paired_bootstrap(v, g, draws=200)
    b = paired_bootstrap([factor*x + shift for x in v], g, draws=200)
    ends = sorted([factor*a['low'] + shift, factor*a['high'] + shift])
    assert [b['mean'], b['low'], b['high']] == pytest.approx([factor*a['mean'] + shift, *ends], abs=1e-8)
    assert min(v) - 1e-9 <= a['low'] <= a['high'] <= max(v) + 1e-9
    if groups == 1: assert a['low'] == pytest.approx(a['mean']) == a['high']   # one group says nothing of chance

def test_newcomers_that_are_none(make_cfg):
    server = get_server(make_cfg(rounds=0), client_data(4), callbacks=[])
    one = client_data(1)[0]
    for args,message in [
        (([one],), r'`newcomers`: expected names with'),
        (({'a': {**one, 'train': []}},), "`newcomers: a`: expected a dict with examples in 'train' and 'test'"),
        (({'a': one['train']},), '`newcomers: a`'),
        (({'a': {'test': one['test']}},), '`newcomers: a`'),
        (({'a': one}, -1), '`rounds`: expected a number of rounds, at least 0, got -1'),
        (({'a': one}, 1.5), '`rounds`')]:
        with pytest.raises(ConfigError, match=message): server.test_newcomers(*args)

@pytest.mark.parametrize('table', [score_table, gain_table])
@pytest.mark.parametrize('card', [None, {}, {0: {'loss': 1.}}, 'runs/demo'])
def test_tables_of_what_is_no_scorecard(table, card):
    with pytest.raises(ConfigError, match='`card`: expected a scorecard'): table(card)

def test_a_gain_table_fits_a_terminal():
    "Three baselines stand beside each other, a fourth below; every number is there once."
    g = dict(mean=.71, low=.6, high=.82, better=dict(mean=.88))
    def card(names):
        own = dict(mean={'exact_match': .9}, best={'exact_match': 1.}, interval={'exact_match': [.8,.95]})
        return dict(own, gains={n: {'exact_match': g} for n in names}, **{n: dict(best={}) for n in names})
    three,four = gain_table(card(['base','commonest','average'])),gain_table(card(['base','commonest','average','versus']))
    assert max(map(len, four.splitlines())) <= 112 and four.count('+0.71 [+0.60, +0.82]  88%') == 4 and four.count('[0.80, 0.95]') == 1
    table,more = four.split('\n\n')
    assert table == three.removesuffix(three.splitlines()[-1]).rstrip()
    assert 'over versus' in more.splitlines()[0] and more.splitlines()[2].startswith('exact match')
    for width in (160,80,50):
        got = gain_table(card(['base','commonest','average','versus']), width)
        assert got.count('+0.71 [+0.60, +0.82]  88%') == 4 and ('\n\n' in got) == (width < 160)
        assert width < 60 or max(map(len, got.splitlines())) <= width

def test_a_score_table_fits_a_narrow_terminal(make_cfg, tmp_path):
    "The score stands below the loss; each number is there once, under its own heading."
    def part(x):
        clients = {i: dict(task='a task with a name', loss=x + int(i)/100, score=x/10 + int(i)/100) for i in '012'}
        return dict({k: dict(loss=x, score=x/10) for k in ('mean','median','worst_decile','best')}, clients=clients)
    names = {i: f'a ward with a name {i}' for i in '012'}
    card = {**part(1.), 'base': part(2.), 'commonest': part(3.), 'average': part(4.), 'names': names}
    wide,narrow = score_table(card, width=200),score_table(card, width=90)
    assert max(map(len, narrow.splitlines())) <= 90 < max(map(len, wide.splitlines()))
    loss,score = narrow.split('\n\n')
    assert 'loss base' in loss and 'score' not in loss and 'score base' in score and 'task' not in score
    for k in range(2,5): assert wide.splitlines()[k].split() == loss.splitlines()[k].split() + score.splitlines()[k].split()[6:]
