"Whole runs of the tiny model: what must be true of every round."
import io, itertools, json, sys
import numpy as np, pytest, torch
from pathlib import Path
from peft import PeftModel
from safetensors.torch import load_file
from conftest import TASKS, client_data, sums
from fedai.algorithms import get_server
from fedai.clients import Client_mira
from fedai.config import ConfigError, RunError
from fedai.data.clients import get_client_data
from fedai.models import get_base_model, get_tokenizer
from fedai.servers import BaseServer, Server_mira
from fedai.store.rows import StoreError
from fedai.evaluate.tracking import Callback, Progress
from fedai.utils import rng

def weights(path): return load_file(Path(path)/'adapter_model.safetensors')
def run_files(root):
    return {str(o.relative_to(root)): o.read_bytes() for o in Path(root).rglob('*') if o.is_file() and o.name != 'timing.jsonl'}
def run(cfg, data=None, cls=Server_mira, **kw):
    s = cls(cfg, data or client_data(cfg.num_clients), callbacks=[], **kw)
    s.fit()
    return s

@pytest.mark.parametrize('seed,m,setting', [(0,1.,dict(coupling=.5)), (1,.5,dict(coupling=.9)), (2,.6,dict(lambda_=40.)),
                                            (3,.3,dict(lambda_=5.))])
def test_each_round_is_the_formula_in_float64(make_cfg, seed, m, setting):
    cfg = make_cfg(num_clients=6, m=m, rounds=3, seed=seed, keep_trained=True, keep_rounds=10, **setting)
    s = run(cfg)
    assert all(len(ids) == max(1, round(m*6)) for ids in s.selection)
    for t,ids in enumerate(s.selection):
        f = Path(cfg.output_dir)/str(t+1)
        assert sorted(o.name for o in f.glob('trained_*')) == sorted(f'trained_{i}' for i in ids)
        A = np.load(f/'graph.npy')
        eta_lambda = cfg.lr*cfg.local_step*cfg.lambda_ if cfg.lambda_ is not None else cfg.coupling/A.sum(1).max()
        old = {i: weights(f/f'trained_{i}') for i in ids}
        for k in ids:
            new = weights(f/f'local_output_{k}')
            for n in new:
                W = {i: old[i][n].double() for i in ids}
                want = W[k] - eta_lambda*sum(A[k,l]*(W[k] - W[l]) for l in ids)
                assert (new[n].double() - want).abs().max() < 1e-6
        assert np.isclose(s.history[t]['pull']['max'], max(eta_lambda*A[k,ids].sum() for k in ids))

def test_average_is_weighted_by_examples(make_cfg):
    data = client_data(3)
    data[1]['train'] = data[1]['train'][:6]
    data[2]['train'] = data[2]['train'][:2]
    cfg = make_cfg(num_clients=3, rounds=1, keep_trained=True)
    run(cfg, data, BaseServer)
    f = Path(cfg.output_dir)/'1'
    old = [weights(f/f'trained_{i}') for i in range(3)]
    for i,n in itertools.product(range(3), old[0]):
        want = sum(w*o[n].double() for w,o in zip((.6,.3,.1), old))
        assert (weights(f/f'local_output_{i}')[n].double() - want).abs().max() < 1e-7

def test_what_is_loaded_next_is_the_aggregate_and_the_rest_stands_still(make_cfg):
    cfg = make_cfg(num_clients=5, m=.4, rounds=5, keep_rounds=10, seed=4)
    class Client(Client_mira):
        def train(self, comm_round):
            sent.append((comm_round, self.id, {n: t.clone() for n,t in self.server.live.state().items()}))
            return super().train(comm_round)
    sent = []
    s = Server_mira(cfg, client_data(5), None, None, Client, callbacks=[])
    base = {n: p.clone() for n,p in s.model.named_parameters() if not p.requires_grad}
    start = (Path(cfg.output_dir)/'0'/'adapter_model.safetensors').read_bytes()
    snapshots = []
    class After(Callback):
        def after_round(self, server, record):
            snapshots.append((record['selected'], dict(server.latest_model_iter), {i: server.store.load_row(i).clone() for i in range(5)}))
    s.callbacks = [After()]
    s.fit()
    latest = {i: 0 for i in range(5)}
    for t,i,state in sent:
        want = weights(s.store.path(i, latest[i]) if latest[i] else Path(cfg.output_dir)/'0')
        assert all(torch.equal(state[n], want[n]) for n in want)
        latest = {**latest, **{j: t+1 for j in s.selection[t]}} if i == s.selection[t][-1] else latest
    assert any(sum(i in ids for ids in s.selection) > 1 for i in range(5))
    for (ids,now,rows),(_,_,before) in zip(snapshots[1:], snapshots):
        for i in set(range(5)) - set(ids): assert torch.equal(rows[i], before[i])
    assert s.latest_model_iter == latest == snapshots[-1][1]
    assert (Path(cfg.output_dir)/'0'/'adapter_model.safetensors').read_bytes() == start
    for n,p in s.model.named_parameters():
        if n in base: assert torch.equal(p, base[n]), n

def test_same_seed_same_bits_other_seed_other_bits(make_cfg):
    a,b,c = make_cfg(seed=1, lora_dropout=.1),make_cfg(seed=1, lora_dropout=.1),make_cfg(seed=2, lora_dropout=.1)
    files = []
    for cfg in (a,b,c):
        torch.manual_seed(len(files))   # the global generator must not matter
        run(cfg).test()
        f = run_files(cfg.output_dir)
        del f['config.yaml']            # names the folder
        files.append(f)
    assert files[0] == files[1]
    assert files[0]['2/local_output_0/adapter_model.safetensors'] != files[2]['2/local_output_0/adapter_model.safetensors']

def test_order_of_clients_in_a_round_gives_the_same(make_cfg):
    class Backwards(Server_mira):
        def client_selection(self): return [ids[::-1] for ids in super().client_selection()]
    Backwards.__qualname__ = 'Server_mira'   # or the folders would differ in the name
    a,b = make_cfg(rounds=3, m=.75),make_cfg(rounds=3, m=.75)
    run(a)
    run(b, cls=Backwards)
    x,y = run_files(a.output_dir),run_files(b.output_dir)
    assert {k: v for k,v in x.items() if k != 'config.yaml'} == {k: v for k,v in y.items() if k != 'config.yaml'}

def test_no_test_item_is_trained_on(make_cfg):
    cfg = make_cfg(tasks=TASKS, clients_per_task=2, train_size=20, test_size=10)
    data = get_client_data(cfg)
    train = {e['instruction'] for d in data for e in d['train']}
    assert len(train) == 80 and not train & {e['instruction'] for d in data for e in d['test']}
    s = Server_mira(cfg, data, callbacks=[])
    seen = [c.train_data.items for c in s.client_list]
    tested = [c.test_data.items for c in s.client_list]
    assert not {tuple(e.prompt) for d in seen for e in d} & {tuple(e.prompt) for d in tested for e in d}

@pytest.mark.parametrize('kw', [dict(), dict(use_rslora=True, target_modules='all-linear'), dict(add_tokens=['<sum>']),
                                dict(dtype='bfloat16')])
def test_every_state_is_a_peft_adapter_with_the_same_logits(make_cfg, kw):
    cfg = make_cfg(num_clients=3, keep_rounds=10, keep_trained=True, lr=1e-2, **kw)
    s = run(cfg)
    tok = get_tokenizer(cfg)
    ids = torch.tensor([tok('3 + 104 = <sum>').input_ids])
    folders = [o.parent for o in Path(cfg.output_dir).rglob('adapter_config.json')]
    assert len(folders) == 1 + 2*2*3
    differ = 0
    for f in folders:
        m = PeftModel.from_pretrained(get_base_model(cfg, tok), f).eval()
        s.live.load(s.live.layout.pack(weights(f)))
        with torch.no_grad(): a,b = m(ids).logits,s.model.eval()(ids).logits
        assert torch.equal(a, b), f
        with m.disable_adapter(), torch.no_grad(): differ += not torch.equal(m(ids).logits, a)
    assert differ == len(folders) - 1   # all but the common start

def test_resume_is_as_if_it_had_never_stopped(make_cfg):
    a,b = make_cfg(rounds=4, m=.5, eval_every=2),make_cfg(rounds=4, m=.5, eval_every=2)
    run(a)
    class Stop(Callback):
        def after_client(self, server, comm_round, id, metrics):
            if comm_round == 2: raise KeyboardInterrupt
    s = Server_mira(b, client_data(4), callbacks=[Stop()])
    with pytest.raises(KeyboardInterrupt): s.fit()
    assert json.loads((Path(b.output_dir)/'state.json').read_text())['round'] == 2
    run(b)
    x,y = run_files(a.output_dir),run_files(b.output_dir)
    assert {k: v for k,v in x.items() if k != 'config.yaml'} == {k: v for k,v in y.items() if k != 'config.yaml'}

def a_round_by_hand(s, t, ids):
    for client in s.get_selected_client(ids):
        s.send(client)
        metrics = client.train(t)
        s.save_trained(client.idx, t, metrics)
    s.aggregate(ids, t)

@pytest.mark.parametrize('name', ['mira','fedavg','local'])
def test_a_loop_by_hand_is_fit(make_cfg, name):
    "With public names only, to the bit; not to commit, or not to aggregate, is an error that harms nothing."
    kw = dict(name=name, m=.5, rounds=3, eval_every=2, engine='sequential')
    a,b = make_cfg(**kw),make_cfg(**kw)
    whole,s = get_server(a, client_data(4), callbacks=[]),get_server(b, client_data(4), callbacks=[])
    history = whole.fit()
    assert [len(ids) for ids in s.client_selection()] == [2,2,2] and len(set(sum(s.client_selection(), []))) > 2
    for t,ids in enumerate(s.client_selection()):
        if t == 1: kept = s.store.load_row(0).clone()
        a_round_by_hand(s, t, ids)
        if t == 1:
            client = s.client_list[0]
            for go_on in (lambda: s.save_trained(0, 2, client.train(2)), lambda: s.aggregate(ids, 2),
                          lambda: s.update(s.live.state(), 2, 0),
                          lambda: s.commit(2, ids)):
                with pytest.raises(RunError, match='round 2: expected 1, the one after the last that was committed'): go_on()
            assert s.store.round == 1 and len(s.history) == 1 and torch.equal(s.store.load_row(0), kept)
        s.commit(t, ids)
    assert s.history == history and s.latest_model_iter == whole.latest_model_iter
    x,y = run_files(a.output_dir),run_files(b.output_dir)
    assert {k: v for k,v in x.items() if k != 'config.yaml'} == {k: v for k,v in y.items() if k != 'config.yaml'}
    assert any('local_output' in k for k in x)

@pytest.mark.parametrize('name', ['mira','fedavg'])
def test_a_round_without_aggregated_states_is_not_committed(make_cfg, name):
    "It would leave a state.json that names states that aren't there."
    cfg = make_cfg(name=name, rounds=1, engine='sequential')
    s = get_server(cfg, client_data(4), callbacks=[])
    for client in s.get_selected_client([0,1]):
        s.send(client)
        s.save_trained(client.idx, 0, client.train(0))
    with pytest.raises(RunError, match='round 0: expected an aggregated state of each of its clients, none of client 0'): s.commit(0, [0,1])
    s.update(s.live.state(), 0, 0)
    with pytest.raises(RunError, match='none of client 1'): s.commit(0, [0,1])
    assert get_server(cfg, client_data(4), callbacks=[]).store.round == 0
    s.aggregate([0,1], 0)
    s.commit(0, [0,1])
    assert s.store.check() == [] and get_server(cfg, client_data(4), callbacks=[]).store.round == 1

def mean_of(states): return {n: sum(s[n] for s in states)/len(states) for n in states[0]}

class Looped(BaseServer):
    "Every selected client gets the plain mean of those selected."
    def aggregate(self, ids, comm_round):
        new = mean_of(self.trained_states(ids, comm_round))
        for i in ids: self.update(new, comm_round, i)

class LoopedApart(Looped): one_model = False

@pytest.mark.parametrize('cls', [Looped,LoopedApart])
@pytest.mark.parametrize('norm', [False,True], ids=['lora','batchnorm'])
def test_an_aggregate_by_a_loop(make_cfg, cls, norm):
    """Clients that aren't selected go on from the shared model where there is one, and otherwise from their own.

    A run that was killed between mixing and commit ends as one that never stopped."""
    kw = dict(m=.5, rounds=3, keep_trained=True, keep_rounds=5, seed=1)
    def made(cfg, callbacks=()):
        if not norm: return cls(cfg, client_data(4), callbacks=[*callbacks])
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
        data = [{k: [(torch.randn(3), i % 2) for i in range(6)] for k in ('train','test')} for _ in range(4)]
        return cls(cfg, data, net, callbacks=[*callbacks], criterion=torch.nn.CrossEntropyLoss())
    sent,seen = {},[]
    class Watch(Callback):
        def before_round(self, server, t, ids): sent[t] = [server.row_of(c).clone() for c in server.client_list]
        def after_round(self, server, record): seen.append(record)
    s = made(make_cfg(**kw), [Watch()])
    history = s.fit()
    assert s.selection[0] != s.selection[1]   # some wait for their turn
    assert [r['pull'] for r in history] == [dict(mean=None, max=None)]*3 and seen == list(history)
    sent[3] = [s.row_of(c) for c in s.client_list]
    views = s.store.layout.views
    for t,ids in enumerate(s.selection):
        trained = s.states.trained(ids, t+1)
        want = mean_of([{n: x[n] for n in s.live.tensors} for x in trained])
        for i in range(4):
            before,after = views(sent[t][i]),views(sent[t+1][i])
            learns = i in ids or cls.one_model
            for n in s.live.tensors: assert torch.equal(after[n], want[n] if learns else before[n]), (t, i, n)
            for n in s.live.buffers: assert torch.equal(after[n], trained[ids.index(i)][n] if i in ids else before[n]), (t, i, n)
    assert len(s.test()) == 4
    cfg = make_cfg(**kw)
    class Stop(Callback):
        def after_mix(self, server, t, M):
            if t == 1: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): made(cfg, [Stop()]).fit()
    again = made(cfg)
    assert again.store.round == 1 and again.fit() == history
    again.test()
    x,y = run_files(s.cfg.output_dir),run_files(cfg.output_dir)
    assert {k: v for k,v in x.items() if k != 'config.yaml'} == {k: v for k,v in y.items() if k != 'config.yaml'}

def test_states_that_a_loop_puts_over_mixed_ones(make_cfg):
    "What `update` puts stays each client's, by hand as by `fit`, though the matrix would have left one model."
    class Server_moved(BaseServer):
        def aggregate(self, ids, comm_round):
            super().aggregate(ids, comm_round)
            for i in ids:
                mixed = self.store.layout.views(self.store.load_row(i, comm_round+1))
                self.update({n: t + i for n,t in mixed.items()}, comm_round, i)
    kw = dict(rounds=1, engine='sequential')
    a,b = (Server_moved(make_cfg(**kw), client_data(4), callbacks=[]) for _ in range(2))
    a.fit()
    a_round_by_hand(b, 0, range(4))
    b.commit(0, range(4))
    assert a.history == b.history and a.history[0]['pull'] == dict(mean=None, max=None)
    rows = [[s.store.load(i) for i in range(4)] for s in (a,b)]
    for x,y in zip(*rows): assert all(torch.equal(x[n], y[n]) for n in x)
    for i in range(4): assert all(torch.allclose(t, rows[0][0][n] + i, atol=1e-6) for n,t in rows[0][i].items())

def test_a_looped_mira_says_nothing_of_a_graph_that_it_did_not_use(make_cfg):
    class Server_alone(Server_mira):
        def aggregate(self, ids, comm_round):
            for i,state in zip(ids, self.trained_states(ids, comm_round)): self.update(state, comm_round, i)
    plain = run(make_cfg(m=.5))
    looped = run(make_cfg(m=.5), cls=Server_alone)
    assert all('graph' in r for r in plain.history) and not any('graph' in r for r in looped.history)

def test_clients_that_never_took_part_are_tested_with_the_common_start(make_cfg):
    cfg = make_cfg(num_clients=3, m=.3, rounds=1)
    s = run(cfg)
    scores = s.test(baselines=True)
    card = json.loads((Path(cfg.output_dir)/'scorecard.json').read_text())
    out = next(i for i in range(3) if i not in s.selection[0])
    assert s.latest_model_iter.get(out) is None and card['clients'][str(out)] == card['base']['clients'][str(out)]
    took = s.selection[0][0]
    assert card['clients'][str(took)]['loss'] != card['base']['clients'][str(took)]['loss']
    assert set(scores) == {0,1,2} and {'task','rougeL','bleu','exact_match','loss'} <= set(card['clients']['0'])
    assert np.isclose(card['mean']['loss'], np.mean([c['loss'] for c in card['clients'].values()]))

def test_scores_follow_from_the_saved_generations(make_cfg):
    from rouge_score.rouge_scorer import RougeScorer
    import sacrebleu
    cfg = make_cfg(num_clients=2)
    s = run(cfg)
    s.test()
    said = [json.loads(o) for o in (Path(cfg.output_dir)/'generations.jsonl').read_text().splitlines()]
    for i in (0,1):
        mine = [o for o in said if o['client'] == i]
        c = s.scorecard['clients'][str(i)]
        assert len(mine) == 4 and np.isclose(c['exact_match'], np.mean([o['output'] == o['generated'] for o in mine]))
        assert np.isclose(c['rougeL'], np.mean([RougeScorer(['rougeL']).score(o['output'], o['generated'])['rougeL'].fmeasure
                                                for o in mine]))
        bleu = sacrebleu.BLEU(effective_order=True).corpus_score([o['generated'] for o in mine], [[o['output'] for o in mine]])
        assert np.isclose(c['bleu'], bleu.score)

def test_holdout_is_the_loss_of_the_weighted_mean(make_cfg):
    cfg = make_cfg(num_clients=2, rounds=1)
    hold = client_data(3)[2]['test']
    s = run(cfg, holdout_ds=hold)
    a,b = s.store.load(0),s.store.load(1)
    s.live.load(s.live.layout.pack({n: (a[n] + b[n])/2 for n in a}))
    assert np.isclose(s.history[0]['holdout_loss'], s.task.mean_losses(s.live, {0: s.task.prepare(hold, '')})[0], atol=1e-5)

def test_ten_thousand_clients_cost_nothing_until_used(make_cfg):
    one = client_data(1)[0]
    cfg = make_cfg(num_clients=10_000, m=2e-4, rounds=2, max_alive=1)
    s = BaseServer(cfg, [one]*10_000, callbacks=[])
    assert len(s.client_list) == 10_000 and not s.client_list.alive
    s.fit()
    assert len(s.client_list.alive) == 1 and len(s.store.latest) == len({i for ids in s.selection for i in ids})

def test_a_dataset_is_as_good_as_a_list(make_cfg):
    from datasets import Dataset
    data = client_data(2)
    a,b = make_cfg(num_clients=2, rounds=1),make_cfg(num_clients=2, rounds=1)
    run(a, data)
    run(b, [{k: Dataset.from_list(v) for k,v in d.items()} for d in data])
    x,y = run_files(a.output_dir),run_files(b.output_dir)
    assert x['1/local_output_1/adapter_model.safetensors'] == y['1/local_output_1/adapter_model.safetensors']

def test_one_model_is_what_fedavg_sends_and_tests(make_cfg):
    cfg = make_cfg(num_clients=4, m=.5, rounds=3)
    s = run(cfg, cls=BaseServer)
    for c in s.client_list:
        s.send(c)
        assert torch.equal(s.live.row, s.store.load_row(s.selection[-1][0])) and s.store.where(c.id)[1] == 3
        assert torch.equal(s.live.row, s.store.load_row(c.id)) and weights(s.store.path(c.id))
    assert set(s.latest_model_iter) == {i for ids in s.selection for i in ids} and set(s.latest_model_iter.values()) == {3}   # no others

def test_embeddings_of_new_tokens_are_trained_saved_and_mixed(make_cfg):
    cfg = make_cfg(num_clients=2, keep_trained=True, rounds=1)
    tok = get_tokenizer(cfg)
    tok.add_tokens(['<sum>'])
    data = [{k: [{**e, 'instruction': '<sum> ' + e['instruction']} for e in v] for k,v in d.items()} for d in client_data(2)]
    s = run(cfg, data, tokenizer=tok)
    name = next(n for n in s.live.views if 'trainable_tokens' in n)
    f = Path(cfg.output_dir)
    start = weights(f/'0')[name]
    trained,new = ([weights(f/'1'/f'{kind}_{i}')[name] for i in (0,1)] for kind in ('trained','local_output'))
    assert start.shape == (1,64) and not torch.equal(trained[0], start) and not torch.equal(trained[0], trained[1])
    torch.testing.assert_close(new[0], .5*trained[0] + .5*trained[1])
    m = PeftModel.from_pretrained(get_base_model(cfg, tok), f/'1'/'local_output_1').eval()
    ids = torch.tensor([tok('<sum> 1 + 2 =').input_ids])
    s.send(s.client_list[1])
    assert 261 in ids and torch.equal(m(ids).logits, s.model.eval()(ids).logits)

def test_a_peft_model_of_ones_own(make_cfg):
    "With another adapter name and a module saved whole."
    from peft import LoraConfig, get_peft_model
    cfg = make_cfg(num_clients=2, rounds=1)
    own = get_peft_model(get_base_model(cfg), LoraConfig(task_type='CAUSAL_LM', r=3, target_modules=['v_proj'], modules_to_save=['norm']),
                         adapter_name='mine')
    s = run(cfg, model=own)
    m = PeftModel.from_pretrained(get_base_model(cfg), s.store.path(1)).eval()
    ids = torch.tensor([get_tokenizer(cfg)('1 + 2 =').input_ids])
    s.send(s.client_list[1])
    assert torch.equal(m(ids).logits, s.model.eval()(ids).logits) and any('norm' in n for n in s.live.views)

def test_a_transformers_model_gets_the_lora_of_the_config(make_cfg):
    a,b = make_cfg(rounds=1),make_cfg(rounds=1)
    run(a)
    run(b, model=get_base_model(b))
    assert weights(Path(a.output_dir)/'1'/'local_output_3').keys() == weights(Path(b.output_dir)/'1'/'local_output_3').keys()
    row = '1/local_output_3/adapter_model.safetensors'
    assert run_files(a.output_dir)[row] == run_files(b.output_dir)[row]

@pytest.mark.parametrize('kw', [dict(graph='ring', graph_args={'neighbours': 1}), dict(graph='erdos_renyi', graph_args={'p': .7}),
                                dict(graph='complete', normalise='row'),
                                dict(graph='random', normalise='symmetric', m=.5, renormalize=True),
                                dict(graph='random', normalise='max_degree')], ids=str)
def test_graphs_of_the_config(make_cfg, kw):
    from fedai.graphs import mira_matrix, normalise_graph, subgraph
    seen = []
    class See(Callback):
        def after_mix(self, server, t, M): seen.append((server.selection[t], M))
    s = Server_mira(make_cfg(**kw), client_data(4), callbacks=[See()])
    h = s.fit()
    A = normalise_graph(s.alk_connection, s.cfg.normalise)
    for ids,M in seen:
        assert np.allclose(M, mira_matrix(subgraph(A, ids, s.cfg.renormalize), .5/A.sum(1).max())) and np.allclose(M.sum(1), 1)
    assert h[0]['graph']['components'] >= 1 and h[0]['graph']['lambda_max'] >= 0

@pytest.mark.parametrize('args', [dict(), dict(top_k=1), dict(measure='updates', temperature=.5), dict(every=2)], ids=str)
def test_a_learned_graph(make_cfg, args):
    """Learned between the clients of a round from their trained states, the rest as it was; saved with the round, and the same after each
    of many stops."""
    from fedai.graphs import lora_similarity, similarity_graph
    kw = dict(graph='learned', graph_args=args, num_clients=5, m=.6, rounds=5, lr=1e-2, keep_trained=True, keep_rounds=6)
    every,known = args.get('every', 1),np.zeros((5,5))
    s = Server_mira(make_cfg(**kw), client_data(5), callbacks=[])
    whole = s.fit()
    for t,ids in enumerate(s.selection):
        A,block = np.load(s.store.folder(t+1)/'graph.npy'),np.ix_(ids, ids)
        if t % every == 0 and args.get('measure') != 'updates':
            states = [load_file(s.store.path(i, t+1, 'trained')/'adapter_model.safetensors') for i in ids]
            known[block] = similarity_graph(lora_similarity(states), **{k: v for k,v in args.items() if k != 'every'})
        elif t % every == 0:
            assert not np.array_equal(A[block], known[block])
            known[block] = A[block]
        assert A.any() and np.allclose(A, known) and np.array_equal(A, A.T)
        new = [load_file(s.store.path(i, t+1)/'adapter_model.safetensors') if s.latest_model_iter.get(i) == t+1 else None for i in ids]
        old = [load_file(s.store.path(i, t+1, 'trained')/'adapter_model.safetensors') for i in ids]
        for k,i in enumerate(ids):
            for n in old[0]:
                if new[k]:
                    assert torch.allclose(new[k][n],
                                          old[k][n] - .5/A.sum(1).max()*sum(A[i,j]*(old[k][n] - old[l][n]) for l,j in enumerate(ids)),
                                          atol=1e-6)
    met = sum(np.isin(np.arange(5), ids)[:,None] & np.isin(np.arange(5), ids) for ids in s.selection[::every])
    assert not A[met == 0].any() and (A[met > 0] > 0).sum() > 6   # more than one round's clients
    cfg = make_cfg(**kw)
    class Stop(Callback):
        def after_mix(self, server, t, M): raise KeyboardInterrupt
    early = Server_mira(cfg, client_data(5), callbacks=[Stop()])   # it knows nothing of the rounds that others do
    for stop in (1,2,3): Server_mira(cfg.replace(rounds=stop), client_data(5), callbacks=[]).fit()
    assert np.array_equal(Server_mira(cfg, client_data(5), callbacks=[]).alk_connection, np.load(s.store.folder(3)/'graph.npy'))
    with pytest.raises(KeyboardInterrupt): early.fit()
    early.callbacks = []
    assert early.fit() == whole
    x,y = run_files(s.cfg.output_dir),run_files(cfg.output_dir)
    assert {k: v for k,v in x.items() if k != 'config.yaml'} == {k: v for k,v in y.items() if k != 'config.yaml'}

def kinds_of_text(n=6):
    "Clients of two kinds: arithmetic, and words."
    words = 'the cat sat on a mat and saw some birds fly over old trees by a river'.split()
    def text(k, i):
        return dict(instruction=' '.join(words[(i*3 + k*5 + j) % len(words)] for j in range(6)), output=words[(i+k) % len(words)])
    data = [sums(k, 8) if k % 2 == 0 else [text(k, i) for i in range(8)] for k in range(n)]
    return [{'train': d[2:], 'test': d[:2]} for d in data]

def test_a_graph_from_data(make_cfg):
    """Within a kind of text weights are larger; known before training, independent of who comes first, of the batch, and taken from the
    run when it goes on."""
    kw = dict(num_clients=6, graph='learned', graph_args={'measure': 'data', 'top_k': 2}, selection='neighbourhood', m=.5, rounds=3)
    data,cfg = kinds_of_text(),make_cfg(**kw)
    s = Server_mira(cfg, data, callbacks=[])
    A,same = s.alk_connection,(np.arange(6)[:,None] - np.arange(6)) % 2 == 0
    assert A[same & ~np.eye(6, dtype=bool)].min() > A[~same].max()
    assert len(s.selection) == 3 and all(len({i % 2 for i in ids}) == 1 for ids in s.selection)
    free = Server_mira(make_cfg(**{**kw, 'graph_args': {'measure': 'data', 'temperature': 1.}}), data, callbacks=[]).alk_connection
    assert (free + np.eye(6) > 0).all() and free[same & ~np.eye(6, dtype=bool)].min() > free[~same].max()
    # against embeddings of each example alone
    def embed(e):
        ids = torch.tensor([e.prompt + e.answer])
        return s.model(ids, output_hidden_states=True).hidden_states[-1][0].double().mean(0).detach().numpy()
    E = np.stack([np.mean([embed(e) for e in c.train_data.items], 0) for c in s.client_list])
    E -= E.mean(0)
    C = E@E.T/np.sqrt(np.outer((E**2).sum(1), (E**2).sum(1)))
    W = np.exp(C - 1)*(1 - np.eye(6))
    W /= W.sum(1, keepdims=True)
    assert np.abs(free - (W + W.T)/2).max() < 1e-5
    p = [3,0,5,1,4,2]
    other = Server_mira(make_cfg(**kw, eval_batch_size=3), [data[i] for i in p], callbacks=[]).alk_connection
    assert np.allclose(other, A[np.ix_(p, p)], atol=1e-5)
    s.fit()
    assert np.array_equal(np.load(s.store.folder(3)/'graph.npy'), A)
    more = Server_mira(cfg.replace(rounds=4, eval_batch_size=1), data, callbacks=[])
    assert np.array_equal(more.alk_connection, A) and len(more.fit()) == 4
    (s.store.folder(4)/'graph.npy').unlink()
    with pytest.raises(StoreError, match='graph.npy: not there'): Server_mira(cfg.replace(rounds=5), data, callbacks=[])
    with pytest.raises(ConfigError, match='λ_max'): Server_mira(make_cfg(**kw, lambda_=1e4), data, callbacks=[])
    pairs = [{'train': [(torch.ones(3), 0)]*4, 'test': [(torch.ones(3), 1)]*2} for _ in range(4)]
    with pytest.raises(ConfigError, match="`graph_args: measure`: expected one of 'states', 'updates', got 'data'"):
        Server_mira(make_cfg(graph='learned', graph_args={'measure': 'data'}), pairs, torch.nn.Linear(3, 2), callbacks=[],
                    criterion=torch.nn.CrossEntropyLoss())

@pytest.mark.parametrize('kw,sizes', [(dict(selection='weighted', m=.5), 2), (dict(selection='round_robin', m=.25), 1),
                                      (dict(selection='neighbourhood', m=.5, graph='ring'), 2)], ids=str)
def test_selections_of_the_config(make_cfg, kw, sizes):
    s = Server_mira(make_cfg(rounds=4, **kw), client_data(4), callbacks=[])
    assert [len(o) for o in s.selection] == [sizes]*4
    if kw['selection'] == 'round_robin': assert sorted(sum(s.selection, [])) == [0,1,2,3]
    if kw['selection'] == 'neighbourhood': assert all(s.alk_connection[np.ix_(o, o)].any() for o in s.selection)
    assert len(s.fit()) == 4

@pytest.mark.parametrize('kw', [dict(), dict(selection_args={'d': 5}), dict(name='fedavg_ft'), dict(name='ditto')], ids=str)
def test_selection_by_loss(make_cfg, kw):
    """π_rpow-d of Cho et al., 2020: of d clients, those whose loss was highest when they last trained; infinite before. A stopped run goes
    on with the same."""
    kw = dict(dict(name='mira', selection='power_of_choice', num_clients=6, m=1/3, rounds=6, lr=.02), **kw)
    d = kw.get('selection_args', {}).get('d', 4)
    s = get_server(make_cfg(**kw), client_data(6), callbacks=[])
    assert len(s.selection) == 1
    whole,last = s.fit(),{}
    for t,r in enumerate(whole):
        drawn = rng(0, 'selection', t).choice(6, d, replace=False).tolist()
        want = sorted(sorted(drawn, key=lambda i: -last.get(i, float('inf')))[:2])
        assert r['selected'] == (list(range(6)) if kw['name'] == 'fedavg_ft' and t == 5 else want)
        last.update({int(i): l for i,l in r['loss'].items()})
    assert s.selection == [r['selected'] for r in whole] and len(last) == 6
    cfg,lines = make_cfg(**kw),io.StringIO()
    class Stop(Callback):
        def after_client(self, server, comm_round, id, metrics):
            if comm_round == 4: raise KeyboardInterrupt
    for stop in ([2,3] if kw['name'] != 'fedavg_ft' else []): get_server(cfg.replace(rounds=stop), client_data(6), callbacks=[]).fit()
    killed = get_server(cfg, client_data(6), callbacks=[Stop()])
    with pytest.raises(KeyboardInterrupt): killed.fit()
    again = get_server(cfg, client_data(6), callbacks=[Progress(lines)])
    assert again.selection == s.selection[:5] and again.fit() == whole and again.selection == s.selection and 'going on' in lines.getvalue()
    killed.callbacks = []
    assert killed.fit() == whole and killed.selection[:5] == s.selection[:5]
    x,y = run_files(s.cfg.output_dir),run_files(cfg.output_dir)
    assert {k: v for k,v in x.items() if k != 'config.yaml'} == {k: v for k,v in y.items() if k != 'config.yaml'}

@pytest.mark.parametrize('kw,message', [(dict(graph='ring', graph_args={'p': 1}),
                                         '`graph_args`: expected settings of ring, which has neighbours'),
                                        (dict(graph='erdos_renyi'), '`graph_args`: expected `p`, which erdos_renyi needs'),
                                        (dict(graph='learned', graph_args={'measure': 'x'}),
                                         "`graph_args: measure`: expected one of 'states', 'updates', 'data'"),
                                        (dict(graph='learned', graph_args={'every': 0}),
                                         '`graph_args: every`: expected a number of rounds, at least 1, got 0'),
                                        (dict(graph='learned', graph_args={'every': 2, 'measure': 'data'}),
                                         '`graph_args: every`: expected nothing beside'),
                                        (dict(graph='learned', graph_args={'top_k': 0}), '`graph_args: top_k`: expected at least 1'),
                                        (dict(normalise='row', renormalize=True), '`renormalize`: expected false'),
                                        (dict(selection='availability'),
                                         '`selection_args`: expected `available`, which availability needs'),
                                        (dict(selection='availability', selection_args={'available': 'no.csv'}),
                                         '`selection_args: available`: expected a readable .csv'),
                                        (dict(selection='neighbourhood', graph='learned'),
                                         '`selection`: expected another than neighbourhood'),
                                        (dict(graph_args={'p': 1}), 'settings of random, which has none'),
                                        (dict(selection='power_of_choice', m=.5, selection_args={'d': 1}),
                                         r'`selection_args: d`: expected from 2 \(m·K\) to 4 candidates, got 1'),
                                        (dict(selection='power_of_choice', selection_args={'d': 5}),
                                         '`selection_args: d`: expected from 4'),
                                        (dict(selection='power_of_choice', m=.25, selection_args={'d': True}),
                                         '`selection_args: d`: expected from 1'),
                                        (dict(selection='power_of_choice', m=.25, selection_args={'d': 2.5}),
                                         '`selection_args`: expected settings of power_of_choice: d'),
                                        (dict(selection='power_of_choice', selection_args={'p': 1}),
                                         '`selection_args`: expected settings of power_of_choice, which has d')], ids=str)
def test_bad_graph_and_selection_settings(make_cfg, kw, message):
    with pytest.raises(ConfigError, match=message): Server_mira(make_cfg(**kw), client_data(4), callbacks=[])

def test_nothing_of_a_model_stays_when_its_server_is_gone(make_cfg):
    "Runs after each other in one process, as a comparison makes them, must not add up."
    import gc, warnings
    s = get_server(make_cfg(adapt_layers='last:1', rounds=1), client_data(4), callbacks=[])
    s.fit(), s.test()
    mine = {p.untyped_storage().data_ptr() for p in s.model.parameters()}
    del s
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert not [o.shape for o in gc.get_objects() if isinstance(o, torch.Tensor) and o.numel()
                    and o.untyped_storage().data_ptr() in mine]

def test_a_run_that_ends_before_its_time_gives_back_what_it_held(make_cfg, monkeypatch):
    "In a notebook the next run's bar stood a line too low, and MLflow refused a second run beside the open one."
    from fedai.evaluate.tracking import Trackers, tqdm
    from accelerate.tracking import GeneralTracker
    monkeypatch.setitem(sys.modules, 'ipykernel', sys)   # there the bar is shown
    class Mine(GeneralTracker):
        name,requires_logging_directory,tracker,said = 'mine',False,None,[]
        def start(self): self.said.append('start')
        def store_init_configuration(self, values): pass
        def log(self, values, step=None): pass
        def finish(self): self.said.append('finish')
    class Stop(Callback):
        at = 1
        def after_client(self, server, comm_round, id, metrics):
            if comm_round == self.at: raise KeyboardInterrupt
    p,stop = Progress(io.StringIO()),Stop()
    s = Server_mira(make_cfg(rounds=3), client_data(4), callbacks=[p, Trackers([Mine()]), stop])
    with pytest.raises(KeyboardInterrupt): s.fit()
    assert p.bar not in tqdm._instances and Mine.said == ['start','finish'] and s.store.round == 1
    stop.at = None
    assert len(s.fit()) == 3 and Mine.said == ['start','finish']*2

def test_a_server_whose_run_has_gone_on_elsewhere_says_so(make_cfg):
    cfg = make_cfg(keep_rounds=1)
    old = run(cfg)
    want = old.test()[0]['loss']
    new = run(cfg.replace(rounds=4))
    gone_on = r'not there \(since it was opened here at round 2, the run has gone on to round 4: make the server anew\)'
    with pytest.raises(StoreError, match=gone_on): old.test()
    assert new.test()[0]['loss'] != want
