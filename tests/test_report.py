"The report: what stands on the page against the run's files, by another parser and in a browser."
import base64, json, math, re, shutil, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path
import numpy as np, pytest, yaml
from fedai.config import ConfigError, FedConfig
from fedai.study.report import write_report
from browser import Browser, find
from conftest import TASKS

ROOT = Path(__file__).parent.parent
VOID = {'meta','link','br','input','img','hr'}

class Page(HTMLParser):
    "Elements with their text, tables with their cells, and the block of data."
    def __init__(self, text):
        super().__init__()
        self.open,self.tags,self.words = [],[],[]
        self.tables,self.data = {},''
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag in VOID: return
        self.open.append((tag, attrs))
        if tag == 'table': self.tables.setdefault(self.label(), [])
        if tag == 'tr': self.rows().append([])
        if tag in ('td','th'): self.rows()[-1].append('')

    def label(self): return next(a['aria-label'] for t,a in reversed(self.open) if 'aria-label' in a)
    def rows(self): return self.tables[self.label()]

    def handle_endtag(self, tag):
        if tag in VOID or tag in ('circle','path'): return
        while self.open and self.open[-1][0] in ('circle','path') and tag not in ('circle','path'): self.open.pop()
        assert self.open.pop()[0] == tag, tag

    def handle_data(self, text):
        if any(t == 'script' for t,_ in self.open):
            if self.open[-1][1].get('id') == 'data': self.data += text
            return
        if any(t == 'style' for t,_ in self.open): return
        self.words.append(text)
        if any(t in ('td','th') for t,_ in self.open): self.rows()[-1][-1] += text

    @property
    def runs(self): return json.loads(self.data)['runs']
    @property
    def text(self): return ' '.join(''.join(self.words).split())

def number(text):
    "The first number in a cell."
    return float(re.search(r'[+−-]?[\d,]+(\.\d+)?', text)[0].replace('−', '-').replace(',', ''))

def near(text, x, slack=1e-9):
    "True where a shown number is the one meant, to its last digit."
    shown = re.search(r'[+−-]?[\d,]+(\.(\d+))?', text)
    return abs(number(text) - x) <= .5*10**-len(shown[2] or '') + slack

@pytest.fixture(scope='module')
def a_run(tmp_path_factory):
    "A whole run of the tiny model, with all that a run can leave."
    from fedai.cli import run
    cfg = FedConfig(
        model='tiny', device='cpu', output_dir=str(tmp_path_factory.mktemp('runs')/'whole'), tasks=TASKS, clients_per_task=3, train_size=12,
        test_size=7, num_clients=5, unseen_clients=1, rounds=5, m=.8, local_step=3, lr=.01, lr_schedule='cosine', graph='learned',
        keep_rounds=5, eval_every=2, holdout_share=.1, max_new_tokens=4, cross='loss', r=4)
    run(cfg)
    return Path(cfg.output_dir)

def read(p): return json.loads(p.read_text())
def lines(p): return [json.loads(o) for o in p.read_text().splitlines()]

def test_a_run_that_is_not_tested_yet_has_its_clients_names_and_tasks(a_run, tmp_path):
    shutil.copytree(a_run, tmp_path/'going')
    for o in ('scorecard.json','generations.jsonl','cross_evaluation.json'): (tmp_path/'going'/o).unlink()
    (one,),(whole,) = (Page(write_report(o, tmp_path/f'{k}.html').read_text()).runs for k,o in enumerate((tmp_path/'going', a_run)))
    assert one['names'] == whole['names'] and len(set(one['names'])) == 5
    assert (one['tasks'],one['task']) == (whole['tasks'],whole['task'])
    (tmp_path/'going'/'names.json').write_text('{"names": 3}')
    with pytest.raises(ConfigError, match='names.json'): write_report(tmp_path/'going', tmp_path/'x.html')

@pytest.fixture(scope='module')
def a_page(a_run, tmp_path_factory): return Page(write_report(a_run, tmp_path_factory.mktemp('page')/'page.html', answers=3).read_text())

def matrix(m):
    "The numbers of a matrix in the block of data."
    q = np.frombuffer(base64.b64decode(m['q']), '<u2').reshape(m['n'], m['n'])
    return m['lo'] + (m['hi'] - m['lo'])*q/65535

def test_settings_are_the_files(a_run, a_page):
    cfg,plain = yaml.safe_load((a_run/'config.yaml').read_text()),FedConfig().asdict()
    changed = {r[0]: r[1] for r in a_page.tables['Settings that differ from the defaults'][1:]}
    assert set(changed) == {k for k,v in cfg.items() if v != plain[k] and k != 'output_dir'}
    assert changed['graph'] == 'learned' and json.loads(changed['tasks']) == cfg['tasks'] and float(changed['lr']) == .01
    assert {r[0] for r in a_page.tables['All settings'][1:]} == set(cfg)

def test_numbers_are_the_files(a_run, a_page):
    card,h = read(a_run/'scorecard.json'),lines(a_run/'history.jsonl')
    run, = a_page.runs
    assert (run['K'], run['names']) == (5, [card['names'][str(i)] for i in range(5)])
    assert f"tokens trained on {sum(r['tokens'] for r in h):,}" in re.sub(r'(?<=on)(?=\d)', ' ', a_page.text)
    head,*rows = a_page.tables['Means over clients']
    rivals = ['base','commonest','average']
    assert head == ['mean over clients','own',*rivals,*(f'gain over {o}' for o in rivals)]
    assert {'loss','holdout loss'} <= {r[0] for r in rows}
    for r in rows:
        k = next(k for k in card['mean'] if k.replace('_', ' ') == r[0])
        assert near(r[1], card['mean'][k]) and near(r[1].split('[')[1], card['interval'][k][0])
        for name,cell in zip(head[2:5], r[2:5]):
            assert near(cell, card[name]['mean'][k]) if k in card[name]['mean'] else cell == '–', (k, name)
        for name,cell in zip(rivals, r[5:]):
            g = card['gains'].get(name, {}).get(k)
            if not g: assert not cell
            else:
                assert near(cell, g['mean']) and near(cell.split('[')[1], g['low']), (k, name, cell)
                assert f"{100*g['better']['mean']:.0f} %" in cell, (k, name, cell)

def test_curves_are_the_files(a_run, a_page):
    h,(run,) = lines(a_run/'history.jsonl'),a_page.runs
    charts = {c['title']: c for c in run['charts']}
    for title,key,mean in (('Training loss','loss','mean_loss'),('Test loss','test_loss','mean_test_loss')):
        c,there = charts[title],[r for r in h if key in r]
        assert c['x'] == c['cx'] == [r['round']+1 for r in there]
        np.testing.assert_allclose(c['lines'][0]['y'], [r[mean] for r in there], rtol=1e-4)
        for i,ys in zip(c['ids'], c['cy']):
            for r,y in zip(there, ys): assert y is None and str(i) not in r[key] or math.isclose(y, r[key][str(i)], rel_tol=1e-4)
    def shown(title, line=0): return charts[title]['lines'][line]['y']
    assert shown('Effective pull', 1) == pytest.approx([r['pull']['max'] for r in h], rel=1e-4)
    assert shown('Tokens trained on') == [r['tokens'] for r in h]
    assert shown('Time') == pytest.approx([o['seconds'] for o in lines(a_run/'timing.jsonl')], rel=1e-4)
    assert shown("Loss on the server's own examples") == pytest.approx([r['holdout_loss'] for r in h], rel=1e-4)
    assert shown('Clients in a round') == [len(r['selected']) for r in h] == [4]*5

def test_graphs_are_the_files(a_run, a_page):
    run, = a_page.runs
    assert [o['rounds'] for o in run['graph']['steps']] == [[t] for t in range(1, 6)] and sorted(run['graph']['order']) == list(range(5))
    for o in run['graph']['steps']:
        A,B = np.load(a_run/str(o['rounds'][0])/'graph.npy'),np.zeros((5,5))
        for i,j,w in o['edges']: B[i,j] = B[j,i] = w
        np.testing.assert_allclose(B, A, rtol=1e-4)

def test_clients_are_the_files(a_run, a_page):
    card,said,(run,) = read(a_run/'scorecard.json'),lines(a_run/'generations.jsonl'),a_page.runs
    t = run['table']
    for p,vs in t['parts'].items():
        clients = (card if p == 'own' else card[p])['clients']
        for k,v in vs.items(): assert v == pytest.approx([clients[str(i)][k] for i in t['ids']], rel=1e-4)
    assert t['train'] == [card['train'][str(i)] for i in t['ids']]
    assert t['metrics'][:2] == ['score','loss'] and t['n'] == [card['clients'][str(i)]['n'] for i in t['ids']]
    for i,qs in run['said'].items():
        mine = [o for o in said if o['client'] == int(i)]
        assert run['counts'][i] == len(mine) and len(qs) == 3
        for o,(asked,right,own,base,average) in zip(mine, qs):
            assert (asked, right) == (o['instruction'], [o['output']])
            assert (own[0], base[0], average[0]) == (o['generated'], o['base']['generated'], o['average']['generated'])

def test_cross_evaluation_and_newcomers_are_the_files(a_run, a_page):
    card,X,(run,) = read(a_run/'scorecard.json'),read(a_run/'cross_evaluation.json'),a_page.runs
    at = [X['names'].index(n) for n in run['cross']['names']]
    np.testing.assert_allclose(matrix(run['cross']), np.array(X['matrix'])[np.ix_(at, at)], atol=1e-4)
    for r in a_page.tables['Newcomers'][1:]:
        start = card['newcomers']['starts'][r[0]]
        assert near(r[2], start['before']['loss']) and near(r[3], start['after']['loss'])

def test_torch_is_not_loaded(a_run, tmp_path):
    other = write_run(tmp_path/'other')
    args = ['report', str(a_run), str(other), str(write_run(tmp_path/'third')), '--to', str(tmp_path/'p.html')]
    code = f'''import sys
from fedai.cli import main
print(main({args!r}))
print([o for o in ('torch','datasets','transformers','matplotlib') if o in sys.modules])'''
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert out.stdout.splitlines()[1:] == ['0','[]'], out

def test_a_run_goes_on_beside_its_report(make_cfg):
    from conftest import client_data
    from fedai import Server_mira
    cfg = make_cfg(graph='ring')
    Server_mira(cfg, client_data(4), callbacks=[]).fit()
    page = write_report(cfg.output_dir)
    assert 'not tested yet' in page.read_text() and page.parent == Path(cfg.output_dir)
    s = Server_mira(cfg.replace(rounds=3), client_data(4), callbacks=[])
    s.fit()
    assert s.store.round == 3 and not s.store.check() and page.exists()
    assert Page(write_report(cfg.output_dir).read_text()).runs[0]['charts'][0]['x'] == [1,2,3]

# made by hand

HOSTILE = ('</script><script>window.hacked = 1</script><img src=x onerror="window.hacked=2">\'"`${1}&lt;&amp;]]>--><!--\u202eevil\u2066 '
           'שלום مرحبا \x00\x07\ufeff\u2028 😀 <svg/onload=window.hacked=3> {{7*7}} {% raw %}')

def write_run(root, K=6, rounds=4, text=str, seed=0, graph=True, answers=4, **config):
    "The files of a run, with random numbers and texts that `text` makes of plain ones."
    from fedai.evaluate.metrics import gains, summarise
    rng,root = np.random.default_rng(seed),Path(root)
    def write(name, rows): (root/name).write_text(''.join(json.dumps(o) + '\n' for o in rows))
    root.mkdir(parents=True, exist_ok=True)
    task,names = [text(f'Task {i%3}') for i in range(K)],[text(f'ward {i}') for i in range(K)]
    cfg = {'name': 'mira', 'rounds': rounds, 'num_clients': K, 'm': .8, 'model': text('a model'), 'data': text('some data'),
           'versus': text('alone'), **config}
    (root/'config.yaml').write_text(yaml.safe_dump(cfg, allow_unicode=True))
    def a_round(t):
        ids = sorted(rng.choice(K, max(2, int(.8*K)), replace=False).tolist())
        loss = {str(i): float(rng.gamma(4, .5)) for i in ids}
        return dict(round=t, lr=.01, selected=ids, loss=loss, mean_loss=float(np.mean(list(loss.values()))),
                    tokens=int(rng.integers(100, 200)), pull=dict(mean=.2, max=.4),
                    graph=dict(clients=K, edges=3, components=1, mean_degree=1.5, pull_mean=.2, stable=True),
                    failed={str(i): text('no reply') for i in range(K) if i not in ids})
    write('history.jsonl', [a_round(t) for t in range(rounds)])
    (root/'state.json').write_text(json.dumps(dict(round=rounds, history_bytes=(root/'history.jsonl').stat().st_size)))
    write('timing.jsonl', [dict(round=t, seconds=float(rng.uniform(1, 2))) for t in range(rounds)])
    def scores(i): return dict(task=task[i], n=answers, loss=float(rng.gamma(4, .5)), score=float(rng.integers(0, 9)/8))
    parts = {p: {str(i): scores(i) for i in range(K-1)} for p in ('own','base','commonest','average','versus')}
    own = parts.pop('own')
    each = {'before': dict(task=task[0], n=4, loss=2.), 'after': dict(task=task[0], n=4, loss=1.), 'clients': [0]}
    starts = {'start': dict(n=1, before=dict(loss=2.), after=dict(loss=1.))}
    card = dict(
        summarise(own), untested={str(K-1): text('the site is gone')}, names={str(i): n for i,n in enumerate(names)}, clients=own,
        **{p: {**summarise(v), 'clients': v} for p,v in parts.items()}, gains={p: gains(own, v) for p,v in parts.items()},
        newcomers=dict(rounds=1, starts=starts, clients={text('new'): {'start': each}}))
    (root/'scorecard.json').write_text(json.dumps(card))
    def said(i, j): return dict(
        client=i, task=task[i], instruction=text(f'question {i}.{j}'), input=text('more'), output=text('right'),
        generated=text('right' if j%2 else 'wrong'), base=dict(generated=text('before')), average=dict(generated=text('mean')))
    write('generations.jsonl', [said(i, j) for i in range(K-1) for j in range(answers)])
    cross = dict(metric='loss', clients=list(range(K-1)), names=names[:-1], tasks=task[:-1], matrix=rng.gamma(2, 1, (K-1,K-1)).tolist())
    (root/'cross_evaluation.json').write_text(json.dumps(cross))
    for t in range(1, rounds+1) if graph else ():
        A = np.triu(rng.random((K,K))*(rng.random((K,K)) < .5), 1)
        (root/str(t)).mkdir(exist_ok=True)
        np.save(root/str(t)/'graph.npy', A + A.T)
    return root

def test_hostile_text_stays_text(tmp_path):
    plain = write_report(write_run(tmp_path/'plain'), tmp_path/'plain.html').read_text()
    bad = write_report(write_run(tmp_path/'bad"><script>x', text=lambda t: t + HOSTILE + t), tmp_path/'bad.html').read_text()
    a,b = Page(plain),Page(bad)
    assert [t for t,_ in a.tags] == [t for t,_ in b.tags]
    assert [set(x) for _,x in a.tags] == [set(x) for _,x in b.tags]   # no attribute that wasn't there
    assert bad.count('</script') == plain.count('</script') == 2 and '<img' not in bad and '<svg/onload' not in bad
    full = lambda t: t + HOSTILE + t
    run, = b.runs
    assert run['name'] == 'bad"><script>x' and run['names'][2] == full('ward 2') and run['tasks'][0] == full('Task 0')
    assert run['said']['0'][0][:3] == [full('question 0.0') + '\n' + full('more'), [full('right')], [full('wrong'), False]]
    assert full('no reply') in [r[2] for r in b.tables['Failed clients']]
    assert full('the site is gone') == b.tables['Clients that could not be tested'][1][1]

def test_any_text_can_be_written(tmp_path):
    "Half of a surrogate pair, which JSON can hold and UTF-8 can't; a line of 10 kB; nothing at all."
    root = write_run(tmp_path/'run')
    said = lines(root/'generations.jsonl')
    said[0]['generated'],said[1]['generated'],said[2]['generated'] = 'a\ud800b','x'*10_000,''
    (root/'generations.jsonl').write_text(''.join(json.dumps(o) + '\n' for o in said))
    got = [q[2][0] for q in Page(write_report(root).read_text()).runs[0]['said']['0']]
    assert got[0] == 'a\ufffdb' and got[2] == '' and re.fullmatch(r'x+ \[…\] x+', got[1]) and len(got[1]) < 5000

def test_choices_and_several_right_answers(tmp_path):
    root = write_run(tmp_path/'run')
    which = dict(client=0, task='', instruction='Which?', input='', output='b', choices=['a','b'], generated='I say a', chosen=1,
                 chosen_norm=0, base=dict(generated='b', chosen=0, chosen_norm=0))
    who = dict(client=0, task='', instruction='Who?', input='', output='x', references=['x','y'], generated=' y\n',
               base=dict(generated='z'))
    (root/'generations.jsonl').write_text(''.join(json.dumps(o) + '\n' for o in (which, who)))
    assert Page(write_report(root).read_text()).runs[0]['said']['0'] == [
        ['Which?\n- a\n- b', ['b'], ['b',True], ['a',False], None],
        ['Who?', ['x','y'], [' y\n',True], ['z',False], None]]

DAMAGE = {
    'cut': lambda b: b[:len(b)//2 - 7],
    'list': lambda b: b'[1, 2]',
    'number': lambda b: b'3\n',
    'empty': lambda b: b'',
    'bytes': lambda b: b'\xff\xfe\x00' + b,
    'text for numbers': lambda b: re.sub(rb'(: |\[)-?\d[\d.]*(?=[,}\]\n])', rb'\1"much"', b),
    'deep': lambda b: b'['*100_000,
    'null': lambda b: b'null\n',
}
HARMLESS = {   # no lines; no settings, or fewer; a line without an end of a file that grows
    ('generations.jsonl','empty'), *(('config.yaml',how) for how in ('empty','null','cut')),
    *(('timing.jsonl',how) for how in ('cut','empty','list','deep')),
}

FILES = ['state.json','history.jsonl','timing.jsonl','scorecard.json','generations.jsonl','cross_evaluation.json','2/graph.npy',
         'config.yaml']

@pytest.mark.parametrize('name,how', [(n, h) for n in FILES for h in DAMAGE if (n, h) != ('2/graph.npy','text for numbers')])
def test_damaged_files_are_named(tmp_path, name, how):
    root = write_run(tmp_path/'run')
    page = write_report(root)
    before,was = page.read_bytes(),(root/name).read_bytes()
    (root/name).write_bytes(DAMAGE[how](was))
    assert (root/name).read_bytes() != was
    if (name, how) in HARMLESS: write_report(root)
    else:
        with pytest.raises(ConfigError, match=f'readable {Path(name).name}|{re.escape(str(root/name))}'): write_report(root)
        assert page.read_bytes() == before
    assert not [o for o in root.iterdir() if o.suffix == '.tmp']

def test_wrong_graphs_are_named(tmp_path):
    objects,texts = np.array([{}]*36).reshape(6,6),np.array([['a']*6]*6)
    for A,why in ((np.zeros((3,3)), 'shape'), (np.full((6,6), np.nan), 'finite'), (objects, 'graph.npy'), (texts, 'numbers')):
        root = write_run(tmp_path/'run')
        np.save(root/'1'/'graph.npy', A, allow_pickle=True)
        with pytest.raises(ConfigError, match='graph.npy') as e: write_report(root)
        assert why in str(e.value)

def test_what_is_no_run(tmp_path):
    for bad in (tmp_path, tmp_path/'none'):
        with pytest.raises(ConfigError, match='`run`: expected the folder of a run'): write_report(bad)
    root = write_run(tmp_path/'run')
    with pytest.raises(ConfigError, match='`to`'): write_report(root, tmp_path/'no'/'x.html')
    with pytest.raises(ConfigError, match='`to`'): write_report(root, tmp_path)
    with pytest.raises(ConfigError, match='`answers`: expected a number of at least 0, got -1'): write_report(root, answers=-1)
    with pytest.raises(ConfigError, match='each once'): write_report([root, tmp_path/'run'/'..'/'run'])
    with pytest.raises(ConfigError, match='at least one'): write_report([])
    assert not list(tmp_path.rglob('*.html'))

def test_a_run_that_goes_on(tmp_path):
    "What isn't committed isn't on the page, and what isn't there yet isn't missed."
    root = write_run(tmp_path/'run')
    done = sum(len(o) for o in (root/'history.jsonl').read_bytes().splitlines(True)[:2])
    (root/'state.json').write_text(json.dumps(dict(round=2, history_bytes=done)))
    page = Page(write_report(root).read_text())
    assert page.runs[0]['charts'][0]['x'] == [1,2] and [o['rounds'] for o in page.runs[0]['graph']['steps']] == [[1],[2]]
    assert '2 of 4 rounds done' in page.text and 'isn’t finished' in page.text
    card = read(root/'scorecard.json')
    for r,said in ((1, True), (2, False)):   # where the scorecard tells when it was made
        (root/'scorecard.json').write_text(json.dumps({**card, 'round': r}))
        assert (f'state after round {r}, not the latest' in Page(write_report(root).read_text()).text) == said
        assert 'isn’t finished' not in Page(write_report(root).read_text()).text
    for o in ('scorecard.json','generations.jsonl','timing.jsonl','history.jsonl','cross_evaluation.json'): (root/o).unlink()
    (root/'state.json').write_text(json.dumps(dict(round=0, history_bytes=0)))
    page = Page(write_report(root).read_text())
    assert 'No round is finished yet' in page.text and 'not tested yet' in page.text and page.runs[0]['charts'] == []

def test_numbers_that_json_has_not(tmp_path):
    root = write_run(tmp_path/'run')
    for o in ('history.jsonl','scorecard.json'):
        t = re.sub(r'("mean_loss"|"high"): [\d.]+', r'\1: NaN', (root/o).read_text())
        (root/o).write_text(t)
        if o == 'history.jsonl': (root/'state.json').write_text(json.dumps(dict(round=4, history_bytes=len(t))))
    page = write_report(root).read_text()
    def no(x): raise AssertionError(x)
    json.loads(Page(page).data, parse_constant=no)
    assert Page(page).runs[0]['charts'][0]['lines'][0]['y'] == [None]*4 and not re.search(r'\bnan\b', Page(page).text)

def test_several_runs_client_by_client(tmp_path):
    a,b = write_run(tmp_path/'a'/'run'),write_run(tmp_path/'b'/'run', seed=1, lr=.5, keep_rounds=7)
    c = write_run(tmp_path/'c'/'run', seed=1, text=lambda t: t + '!')
    page = Page(write_report([a, b, c], tmp_path/'p.html').read_text())
    head,*rows = page.tables['Runs']
    assert [r[0] for r in rows] == ['a/run','b/run','c/run'] == [r['name'] for r in page.runs]
    assert 'lr' in head
    assert 'keep_rounds' not in head and 'output_dir' not in head   # what can't change a result doesn't tell runs apart
    ca,cb = read(a/'scorecard.json'),read(b/'scorecard.json')
    for k,sign in (('score',1),('loss',-1)):
        d = np.array([sign*(cb['clients'][i][k] - ca['clients'][i][k]) for i in ca['clients']])
        cell = rows[1][head.index(f'{k}, gain over a/run; better / worse')]
        assert near(cell, d.mean()) and f'{100*(d > 0).mean():.0f} % / {100*(d < 0).mean():.0f} %' in cell
        assert near(rows[1][head.index(f'{k}, mean')], cb['mean'][k])
        assert near(rows[1][head.index(f'{k}, gain over base')], cb['gains']['base'][k]['mean'])
    assert rows[2][head.index('score, gain over a/run; better / worse')] == 'other questions'
    beside = json.loads(page.data)['beside'][0]
    for l,o in zip(beside['lines'], (a,b,c)): assert l['y'] == pytest.approx([r['mean_loss'] for r in lines(o/'history.jsonl')], rel=1e-4)

def test_a_comparison(tmp_path):
    def g(m): return dict(mean=m, low=m-.1, high=m+.1, better=dict(mean=.75, low=.5, high=1.), worse=dict(mean=.25, low=0., high=.5))
    local = dict(algorithm='local', mean=.5, worst_decile=.2, seeds={'0': .5, '1': .6}, tuned={'lr': .01})
    rows = [dict(o, value=v) for v in (4,16) for o in (local, {**local, 'algorithm': 'mira', 'mean': .6, 'local': g(.1)})]
    for v in (4,16):
        for a in ('local','mira'):
            for s in (0,1): write_run(tmp_path/'cmp'/f'train_size_{v}'/a/f'seed_{s}', name=a, seed=s)
    write_run(tmp_path/'cmp'/'tune'/'mira'/'0')
    (tmp_path/'cmp'/'compare.json').write_text(json.dumps(dict(metric='score', sweep='train_size', rows=rows)))
    page = Page(write_report(tmp_path/'cmp').read_text())
    head,*got = page.tables['Comparison']
    assert head[:6] == ['train size','algorithm','score, mean','worst tenth','seeds','gain over local']
    assert [r[:2] for r in got] == [['4','local'],['4','mira'],['16','local'],['16','mira']]
    assert near(got[1][5], .1) and got[1][6] == '75 % / 25 %' and got[0][5] == ''
    assert [r['name'] for r in page.runs] == [f'train_size_{v}/{a}/seed_{s}' for v in (4,16) for a in ('local','mira') for s in (0,1)]
    (tmp_path/'cmp'/'compare.json').write_text('{"metric": "score"}')
    with pytest.raises(ConfigError, match='readable compare.json'): write_report(tmp_path/'cmp')

def test_a_thousand_clients_stay_small(tmp_path):
    root = write_run(tmp_path/'run', K=1000, rounds=12, answers=3, text=lambda t: t + ' and a few words more'*6)
    page = write_report(root, answers=3)
    run, = Page(page.read_text()).runs
    assert page.stat().st_size < 5e6 and len(run['said']) == 999 and run['kept'] < 3 and len(run['table']['ids']) == 999
    m = run['graph']['steps'][0]['matrix']
    assert m['n'] == 200 and m['grouped'] == 5
    A,o = np.load(root/'1'/'graph.npy'),run['graph']['order']
    np.testing.assert_allclose(matrix(m), A[np.ix_(o, o)].reshape(200, 5, 200, 5).mean((1,3)), atol=1e-4)
    c = run['charts'][0]
    loss = [np.array(list(r['loss'].values())) for r in lines(root/'history.jsonl')]
    np.testing.assert_allclose(c['bands'][0]['lo'], [np.percentile(v, 10) for v in loss], rtol=1e-3)
    np.testing.assert_allclose(c['bands'][1]['hi'], [np.percentile(v, 75) for v in loss], rtol=1e-3)

# the files that pages are made from

TEMPLATES = ROOT/'fedai'/'templates'

def test_templates_escape_everything():
    "Markup is made in one place, for the package's own CSS and JavaScript; no template switches the escapes off."
    for p in TEMPLATES.rglob('*.html'): assert not re.search(r'\bsafe\b|autoescape|Markup', p.read_text()), p
    made = [str(p.relative_to(ROOT)) for p in (ROOT/'fedai').rglob('*.py') if 'Markup(' in p.read_text()]
    assert made == ['fedai/study/report.py'] and (ROOT/made[0]).read_text().count('Markup(') == 1

def test_files_of_pages_can_be_read():
    "One idea a line, none wider than the code's."
    code = [p for p in TEMPLATES.rglob('*.*') if p.suffix in ('.html','.css','.js')]   # a card's paragraphs are lines
    assert len(code) > 15
    for p in code: assert max(map(len, p.read_text().splitlines())) <= 140, p

def test_an_installed_package_has_the_templates(tmp_path):
    subprocess.run([sys.executable, 'setup.py', '-q', 'build_py', '--build-lib', str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    def files(root): return {p.relative_to(root) for p in (root/'fedai').rglob('*') if p.is_file() and 'templates' in p.parts}
    assert files(tmp_path) == files(ROOT) and len(files(ROOT)) > 20

# in a browser

needs_browser = pytest.mark.skipif(find() is None, reason='no Chromium is installed')

@pytest.fixture(scope='module')
def browser():
    with Browser() as b: yield b

@pytest.fixture
def tab(browser):
    browser.errors.clear()
    browser.requests.clear()
    browser.look(1200)
    yield browser
    assert not browser.errors
    assert {r.split(':')[0] for r in browser.requests} <= {'file','data'}
    assert len([r for r in browser.requests if r.startswith('file')]) <= 4

def cells(tab, column, run=0):
    "The texts in a column of the table of clients."
    return tab.js(f"""(() => {{
      const table = document.querySelector('#run{run}-clients table');
      const k = [...table.querySelectorAll('th')].findIndex(e => e.innerText.trim() === {json.dumps(column)});
      return [...table.querySelectorAll('tbody tr')].map(r => r.cells[k].innerText);
    }})()""")

def enter(tab, css, value, event):
    "Gives a control a value, as somebody would who uses it."
    tab.js(f"""(() => {{
      const e = document.querySelector({json.dumps(css)});
      e.value = {json.dumps(value)};
      e.dispatchEvent(new Event('{event}'));
    }})()""")

def text_of(tab, css): return tab.js(f"document.querySelector({json.dumps(css)}).innerText")

@needs_browser
def test_table_sorts_and_filters(tab, tmp_path):
    root = write_run(tmp_path/'run', K=130)
    card = read(root/'scorecard.json')
    tab.open(write_report(root))
    names,own,base = card['names'],card['clients'],card['base']['clients']
    assert cells(tab, 'client') == [names[str(i)] for i in range(100)]
    def order(f, down):
        "Equal ones as they were."
        return [names[i] for i in sorted(own, key=lambda i: (-f(i) if down else f(i), int(i)))]
    head = '#run0-clients th button'
    n = tab.js(f"[...document.querySelectorAll('{head}')].findIndex(e => e.innerText === 'own')")
    tab.click(head, n)
    assert cells(tab, 'client') == order(lambda i: own[i]['score'], True)[:100]
    assert tab.js("document.querySelector('#run0-clients th[aria-sort]').getAttribute('aria-sort')") == 'descending'
    tab.click(head, n)
    assert cells(tab, 'client') == order(lambda i: own[i]['score'], False)[:100]
    tab.click('#run0-clients button.more')
    assert len(cells(tab, 'client')) == 129
    # by the gain, under another metric, of which less is better
    enter(tab, '#run0-clients select', 'loss', 'change')
    tab.click(head, tab.js(f"document.querySelectorAll('{head}').length - 1"))
    def gain(i): return base[i]['loss'] - own[i]['loss']
    got = cells(tab, 'gain over base')
    best = order(gain, True)
    assert cells(tab, 'client') == best
    ids = {v: k for k,v in names.items()}
    for text,name in zip(got, best): assert near(text, gain(ids[name]), 1e-4)   # from numbers of five digits
    # by the keyboard
    tab.js(f"document.querySelector('{head}').focus()")
    tab.press('Enter')
    assert cells(tab, 'client') == sorted(names.values(), key=lambda n: int(n[5:]))[:129]
    assert tab.js("document.activeElement.dataset.head") == 'client'
    # a filter
    tab.js("document.querySelector('#run0-clients input').focus()")
    tab.type('ward 12')
    assert cells(tab, 'client') == ['ward 12',*(f'ward {i}' for i in range(120, 129))]
    assert text_of(tab, '#run0-clients [role=status]') == '10 of 129 clients'
    enter(tab, '#run0-clients input', 'TASK 1', 'input')
    assert set(cells(tab, 'task')) == {'Task 1'} and len(cells(tab, 'task')) == 43
    # a client's name leads to its answers
    enter(tab, '#run0-clients input', '77', 'input')
    tab.click('#run0-clients td button')
    assert 'question 77.0' in text_of(tab, '#run0-answers .qa')

@needs_browser
def test_charts_graph_and_answers(tab, tmp_path):
    root = write_run(tmp_path/'run')
    tab.open(write_report(root, answers=3))
    h = lines(root/'history.jsonl')
    def said(part): return text_of(tab, f'#run0-{part} .tip').split('\n')
    def keys(part, *names):
        tab.js(f"document.querySelector('#run0-{part} .plot').focus()")
        for key in names: tab.press(key)
    # values by the pointer and by the keys
    left,top,width,_ = tab.js("""(() => {
      const plot = document.querySelector('#run0-curves .plot');
      plot.scrollIntoView({block: 'center'});
      const b = plot.getBoundingClientRect();
      return [b.left, b.top, b.width, b.height];
    })()""")
    tab.move(left + width - 15, top + 60)
    of_round,mean,client = said('curves')
    assert of_round == 'round 4' and near(mean, h[3]['mean_loss'])
    name,value = client.rsplit(' ', 1)
    assert near(value, h[3]['loss'][name[5:]])
    tab.move(5, 5)
    assert text_of(tab, '#run0-curves .tip') == ''
    keys('curves', 'ArrowRight', 'ArrowRight', 'ArrowUp')
    of_round,mean,client = said('curves')
    assert of_round == 'round 2' and near(mean, h[1]['mean_loss']) and near(client.rsplit(' ', 1)[1], min(h[1]['loss'].values()))
    # a client's line
    enter(tab, '#run0-curves select', '3', 'change')
    assert tab.js("document.querySelectorAll('#run0-curves path.picked').length") == 1 and 'question 3.0' in text_of(tab, '#run0-answers')
    # the graph of each round
    for t in (4,1,3):
        enter(tab, '#run0-graph input', t-1, 'input')
        A = np.load(root/str(t)/'graph.npy')
        assert tab.js("document.querySelectorAll('#run0-graph svg path').length") == np.count_nonzero(A)/2
        assert text_of(tab, '#run0-graph output').startswith(f'Round {t}')
    tab.js("document.querySelector('#run0-graph input').focus()")
    tab.press('ArrowRight')
    assert text_of(tab, '#run0-graph output').startswith('Round 4')
    keys('graph', 'ArrowRight')
    A,first = np.load(root/'4'/'graph.npy'),Page((root/'report.html').read_text()).runs[0]['graph']['order'][0]
    me,_,*neighbours = said('graph')
    assert me == f'ward {first}' and len(neighbours) == np.count_nonzero(A[first])
    for line in neighbours: assert near(line.rsplit(' ', 1)[1], A[first,int(line.split()[1])])
    # answers
    tab.click('#run0-answers .controls button', 1)
    text = text_of(tab, '#run0-answers')
    assert 'question 4.0' in text and 'The first 3 of 4 test questions' in text and text.count('✓') == 1
    # a cell of the cross-evaluation
    keys('cross', 'ArrowRight', 'ArrowRight')
    text = text_of(tab, '#run0-cross .tip')
    i,j = map(int, re.findall(r'ward (\d)', text))
    assert i != j and near(text.rsplit(' ', 1)[1], read(root/'cross_evaluation.json')['matrix'][i][j])

@needs_browser
def test_hostile_text_does_nothing(tab, tmp_path):
    root = write_run(tmp_path/'bad"><script>x', text=lambda t: t + HOSTILE)
    tab.open(write_report(root))
    assert tab.js("typeof window.hacked") == 'undefined' and tab.js("document.querySelectorAll('script').length") == 2
    # what follows a name isn't turned
    assert tab.js("""(() => {
      const texts = [...document.querySelector('p.sub').childNodes].filter(n => n.nodeType == 3);
      const n = texts.findLast(n => n.textContent.includes('finished')), at = n.textContent.indexOf('finished');
      const r = document.createRange();
      const x = j => { r.setStart(n, at + j); r.setEnd(n, at + j + 1); return r.getBoundingClientRect().left; };
      return x(0) < x(1) && x(1) < x(2);
    })()""")
    assert cells(tab, 'client')[0].startswith('ward 0</script><script>') and 'onerror' in text_of(tab, '.qa .text')
    assert tab.js("document.querySelectorAll('main img, main script, main [onerror]').length") == 0
    assert tab.js("document.documentElement.scrollWidth") <= 1200

@needs_browser
def test_a_script_that_got_in_would_do_nothing(browser, tmp_path):
    page = write_report(write_run(tmp_path/'run'))
    bad = '<script>window.hacked = 1</script><img src=x onerror="window.hacked=2"><img src="https://example.org/x.png">'
    page.write_text(page.read_text().replace('</main>', bad + '</main>'))
    browser.open(page)
    assert browser.js("typeof window.hacked") == 'undefined' and browser.errors
    assert browser.js("document.querySelectorAll('#run0 tbody tr').length") > 6

@needs_browser
@pytest.mark.parametrize('scheme', ['light','dark'])
@pytest.mark.parametrize('width', [360,800,1400,1600])
@pytest.mark.parametrize('K', [6,40,130])
def test_it_fits_and_can_be_read(tab, tmp_path, width, scheme, K):
    "Nothing is wider than the window, no two labels of a picture lie on each other or outside of it, and no text is too faint."
    page = write_report(write_run(tmp_path/'run', K=K, text=lambda t: t + (' of a hospital' if t.startswith('ward') else '')))
    tab.look(width, scheme=scheme)
    tab.open(page)
    tab.settle()
    assert tab.js("document.documentElement.scrollWidth") <= width
    found = tab.js("""[...document.querySelectorAll('.plot svg')].flatMap(svg => {
      const frame = svg.getBoundingClientRect(), texts = [...svg.querySelectorAll('text')].filter(e => e.textContent), out = [];
      const boxes = texts.map(e => e.getBoundingClientRect()), turned = e => e.hasAttribute('transform');
      const within = r => r.left >= frame.left - 2 && r.right <= frame.right + 2 && r.top >= frame.top - 3 && r.bottom <= frame.bottom + 3;
      const over = (r, q) => r.left < q.right - 1 && q.left < r.right - 1 && r.top < q.bottom - 2 && q.top < r.bottom - 2;
      boxes.forEach((r, i) => {
        if (!within(r)) out.push('outside: ' + texts[i].textContent);
        boxes.forEach((q, j) => {
          if (j > i && !turned(texts[i]) && !turned(texts[j]) && over(r, q)) out.push(texts[i].textContent + ' on ' + texts[j].textContent);
        });
      });
      return out;
    })""")
    assert not found, found
    faint = tab.js("""(() => {
      const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
      const over = (a, b) => [0, 1, 2].map(k => a[k]*a[3] + b[k]*(1 - a[3])).concat(1);
      const linear = v => v <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4;
      const lum = c => [0, 1, 2].reduce((s, k) => s + [.2126, .7152, .0722][k]*linear(c[k]/255), 0);
      const ground = e => {
        const stack = [];
        for (let n = e; n; n = n.parentElement) stack.push(parse(getComputedStyle(n).backgroundColor));
        return stack.reverse().reduce((b, c) => over(c, b), [255, 255, 255, 1]);
      };
      const hasText = e => [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim());
      const read = e => e.checkVisibility() && hasText(e) && !['SCRIPT', 'STYLE', 'NOSCRIPT', 'OPTION'].includes(e.tagName);
      return [...document.querySelectorAll('body *')].filter(e => read(e) && e.namespaceURI.endsWith('html')).map(e => {
        const a = lum(parse(getComputedStyle(e).color)), b = lum(ground(e)), ratio = (Math.max(a, b) + .05)/(Math.min(a, b) + .05);
        return [ratio, e.tagName + ' ' + e.className + ' ' + e.textContent.slice(0, 30)];
      }).filter(o => o[0] < 4.5);
    })()""")
    assert not faint, faint[:5]

@needs_browser
@pytest.mark.parametrize('rounds', [1,4])
def test_rounds_are_dots(tab, tmp_path, rounds):
    "A value is a dot as well, so that a run of one round has something to see; and nothing in a picture is text by mistake."
    runs = [write_run(tmp_path/n, rounds=rounds, seed=k) for k,n in enumerate('ab')]
    tab.open(write_report(runs, tmp_path/'p.html'))
    h = lines(runs[0]/'history.jsonl')
    dots = tab.js("""[...document.querySelectorAll('#run0-curves figure')]
      .map(f => [f.querySelector('b').innerText, f.querySelectorAll('circle').length])""")
    assert dict(dots) == {'Training loss': rounds + sum(len(r['loss']) for r in h), 'Effective pull': 2*rounds,
                          'Clients in a round': 2*rounds, 'Tokens trained on': 0, 'Time': 0}
    assert tab.js("document.querySelectorAll('#beside circle').length") == (2 if rounds == 1 else 0)
    assert not tab.js("""[...document.querySelectorAll('.plot svg')]
      .some(e => [...e.childNodes].some(n => n.nodeType == 3) || e.textContent.includes('[object'))""")

@needs_browser
def test_few_clients_with_long_names(tab, tmp_path):
    "Clients are counted in whole numbers; of a name that is too long for a list both ends are seen, and all of it by the pointer."
    long = 'A hospital for children and their parents, on the third floor, ward '
    task = 'the classification of discharge letters by ICD chapter, part'
    tab.open(write_report(write_run(tmp_path/'run', K=3, text=lambda t: t.replace('ward ', long).replace('Task', task))))
    said = tab.js("""(() => {
      const figure = [...document.querySelectorAll('#run0-curves figure')].find(f => f.innerText.startsWith('Clients in a round'));
      return [...figure.querySelectorAll('svg text[text-anchor=end]')].map(e => e.textContent);
    })()""")
    assert said == ['0','1','2','round']
    options = tab.js("[...document.querySelectorAll('#run0-answers option')].map(e => [e.text, e.title])")
    assert len(options) == 2
    for i,(text,title) in enumerate(options):
        assert len(text) <= 40 and text.startswith('A hospital') and text.endswith(f'ward {i}') and title == f'{long}{i}'
    # at the width of a telephone a long task leaves a client's numbers in sight
    tab.look(480)
    tab.settle()
    assert tab.js("document.querySelector('#run0-clients tbody tr').cells[1].getBoundingClientRect().right") < 480

def test_settings_are_explained_in_words(tmp_path):
    page = Page(write_report(write_run(tmp_path/'run', system_prompt='', coupling=.3, graph='tasks')).read_text())
    rows = {r[0]: r for r in page.tables['Settings that differ from the defaults'][1:]}
    assert rows['system_prompt'][1:3] == ['empty','nothing'] and not [r for r in rows.values() if '`' in r[3]]
    assert 'lambda_' in rows['coupling'][3]

@needs_browser
def test_runs_are_shown_one_at_a_time(tab, tmp_path):
    tab.open(write_report([write_run(tmp_path/n, seed=k) for k,n in enumerate('abc')], tmp_path/'p.html'))
    shown = "[...document.querySelectorAll('article.run')].filter(e => e.checkVisibility()).map(e => e.querySelector('h2').innerText)"
    assert tab.js(shown) == ['a']
    tab.click('#beside table a', 1)
    tab.wait(f"JSON.stringify({shown}) == '[\"b\"]'")
    assert tab.js("document.querySelectorAll('#run1 .plot svg').length") > 5 and text_of(tab, 'nav.runs [aria-current]') == 'b'
    tab.js("location.hash = '#run2-clients'")
    tab.wait(f"JSON.stringify({shown}) == '[\"c\"]'")
    assert cells(tab, 'client', 2)[0] == 'ward 0'
    tab.js("history.back()")
    tab.wait(f"JSON.stringify({shown}) == '[\"b\"]'")

@needs_browser
def test_it_prints(tab, tmp_path):
    tab.open(write_report(write_run(tmp_path/'run')))
    tab.pdf(tmp_path/'p.pdf')
    assert (tmp_path/'p.pdf').read_bytes()[:4] == b'%PDF'
    tab.look(720, scheme='dark', media='print')
    tab.settle()
    assert tab.js("getComputedStyle(document.body).backgroundColor") == 'rgb(255, 255, 255)'
    assert not tab.js("document.querySelector('.controls').checkVisibility()")
