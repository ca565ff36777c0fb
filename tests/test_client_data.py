"From files to clients: who has what, what lies on which side, what is left out, and what is kept for the next run."
from pathlib import Path
import json, os, subprocess, sys
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from fedai.algorithms import get_server
from fedai.study.comparison import compare
from fedai.config import ConfigError, FedConfig
from fedai.data.clients import ClientData, get_client_data, show_data, token_facts
from fedai.models import get_tokenizer
from fedai.data.prompts import DataError, Prompter, encode_all
from fedai.servers import BaseServer, Server_mira
from fedai.data.tables import ExampleTable, TokenTable

@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch): monkeypatch.setenv('FEDAI_CACHE', str(tmp_path/'cache'))

def write(path, exs):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(e) + '\n' for e in exs))

def wards(folder, sizes=(30,40,50), start=0):
    def ex(i, k): return dict(instruction=f'{i} + {k} =', output=str(i+k), task=['even','odd'][i%2], kind='abc'[i%3])
    for k,n in enumerate(sizes): write(folder/f'ward{k}.jsonl', [ex(i, k) for i in range(start, start+n)])
    return str(folder)

def question(e): return e['instruction'],e.get('input') or ''
def asked(exs): return {question(e) for e in exs}

ways = [dict(), dict(partition='file'), dict(partition='task'), dict(partition='column', partition_args={'column': 'kind'}),
        dict(partition='iid', num_clients=4), dict(partition='quantity', num_clients=4),
        dict(partition='dirichlet', num_clients=4, partition_args={'alpha': .5}),
        dict(partition='dirichlet', num_clients=3, partition_args={'alpha': .5, 'by': 'kind'}),
        dict(partition='shards', num_clients=3), dict(partition='pathological', num_clients=2)]

@pytest.mark.parametrize('way', ways, ids=str)
@pytest.mark.parametrize('more', [dict(), dict(valid_share=.1, holdout_share=.1, unseen_clients=1), dict(unseen_tasks=['odd'])], ids=str)
def test_every_example_is_in_one_place(tmp_path, way, more):
    "Whatever the way: each example lies with one client, or with the server, and on one side; no client has a question on two sides."
    if more.get('unseen_tasks') and way.get('partition') in ('pathological','shards'): way = dict(way, partition='iid', partition_args={})
    data = get_client_data(FedConfig(data=wards(tmp_path/'d'), **way, **more))
    everyone = [*data, *data.newcomers.values()]
    exs = [e for d in everyone for s in d for e in d[s]] + list(data.holdout or [])
    places = [json.dumps(e, sort_keys=True) for e in exs]
    assert len(places) == 120 == len(set(places))
    for d in everyone:
        sides = [asked(d[s]) for s in d]
        assert all(sides) and sum(map(len, sides)) == len(set.union(*sides))
    assert data.same_questions() == 0
    if 'num_clients' in way: assert len(data) == way['num_clients']
    if more.get('unseen_clients'): assert len(data.newcomers) == 1 and data.holdout and all('valid' in d for d in data)
    if more.get('unseen_tasks'): assert not any(e['task'] == 'odd' for d in data for s in d for e in d[s]) and 'odd' in data.newcomers

def test_a_split_does_not_move_when_data_is_added_or_turned_round(tmp_path):
    before = get_client_data(FedConfig(data=wards(tmp_path/'a', (200,300)), valid_share=.1, holdout_share=.1))
    after = get_client_data(FedConfig(data=wards(tmp_path/'b', (400,500)), valid_share=.1, holdout_share=.1))
    write(tmp_path/'c'/'ward0.jsonl', [e for d in before[:1] for s in d for e in d[s]][::-1])
    turned = get_client_data(FedConfig(data=str(tmp_path/'c'), partition='file', valid_share=.1, holdout_share=0.))
    for s in ('train','valid','test'):
        assert asked(before[0][s]) <= asked(after[0][s]) and asked(before[1][s]) <= asked(after[1][s])
        assert asked(turned[0][s]) == asked(before[0][s])
    assert asked(before.holdout) <= asked(after.holdout)

def test_a_client_with_two_questions_has_none_for_validation(tmp_path):
    "It trains and is tested all the same, and can't be tuned on. A task with one question can't be kept apart: nothing is left to test on."
    def ex(i, k): return dict(instruction=f'{i} + {k}', output='x', client=f'c{k}', task='a')
    write(tmp_path/'d.jsonl', [ex(i, k) for k,n in enumerate((2,8)) for i in range(n)])
    cfg = FedConfig(data=str(tmp_path/'d.jsonl'), valid_share=.2, model='tiny', device='cpu', rounds=1, local_step=1, max_new_tokens=2,
                    output_dir=str(tmp_path/'run'))
    data = get_client_data(cfg)
    assert [len(data[0][s]) for s in ('train','valid','test')] == [1,0,1] and len(data[1]['valid']) > 0
    s = get_server(cfg, data, callbacks=[])
    s.fit()
    assert sorted(s.test()) == [0,1]
    with pytest.raises(ConfigError, match=r"`lst_data_dict\[0\]\['train'\]`: expected at least two examples to tune on, got 1"):
        compare(cfg.replace(output_dir=str(tmp_path/'c')), ['local'], (0,), tune={'*': {'lr': [.1,.2]}})
    write(tmp_path/'e.jsonl', [dict(instruction=f'{i}', output='x', client='c', task='b' if i else 'alone') for i in range(9)])
    lonely = cfg.replace(data=str(tmp_path/'e.jsonl'), valid_share=0., unseen_tasks=['alone'], output_dir=str(tmp_path/'e'))
    with pytest.raises(DataError, match='client alone: no test examples: expected at least two different questions'):
        get_server(lonely, get_client_data(lonely), callbacks=[])

def test_the_seed_draws_another_split(tmp_path):
    folder = wards(tmp_path/'d', (200,))
    a,b = (get_client_data(FedConfig(data=folder, seed=s, partition='file'))[0]['test'] for s in (0,1))
    assert asked(a) != asked(b)

def test_the_second_start_reads_neither_text_nor_tokenises(tmp_path, monkeypatch):
    "What was made once is mapped; another template, or a changed file, makes it anew."
    cfg = FedConfig(data=wards(tmp_path/'d'), model='tiny')
    tok = get_tokenizer(cfg)
    first = get_client_data(cfg)
    items = encode_all(Prompter(tok), first[1]['train'], 'x')[1]
    with monkeypatch.context() as m:
        m.setattr(TokenTable, 'write', None)
        m.setattr('fedai.data.sources.Source.__iter__', None)
        again = get_client_data(cfg)
        assert again == first and list(encode_all(Prompter(tok), again[1]['train'], 'x')[1]) == list(items)
        with pytest.raises(TypeError): encode_all(Prompter(tok, 'alpaca'), again[1]['train'], 'x')
    assert list(items) == [Prompter(tok).encode(e) for e in first[1]['train']]
    with open(tmp_path/'d'/'ward1.jsonl', 'a') as f: f.write(json.dumps(dict(instruction='new', output='x')) + '\n')
    assert sum(len(d[s]) for d in get_client_data(cfg) for s in d) == 121

def test_half_a_table_is_not_taken_for_one(tmp_path):
    "Killed while the table is written: nothing of it is left that the next start would read."
    class Killed(Exception): pass
    class Source:
        def __iter__(self):
            yield dict(instruction='a', output='b')
            raise Killed
    with pytest.raises(Killed): ExampleTable.make(Source(), tmp_path/'t')
    assert not list((tmp_path/'t').glob('*'))
    assert len(ExampleTable.make([dict(instruction='a', output='b')], tmp_path/'t')) == 1

def test_training_is_the_same_from_a_table_and_from_lists(tmp_path, make_cfg):
    data = get_client_data(FedConfig(data=wards(tmp_path/'d')))
    lists = [{s: [dict(e) for e in d[s]] for s in d} for d in data]
    a,b = (BaseServer(make_cfg(num_clients=3), o, callbacks=[]) for o in (data,lists))
    a.fit(), b.fit()
    assert [(a.store.load_row(k) == b.store.load_row(k)).all() for k in range(3)] == [True]*3
    assert a.test() == b.test()
    assert [a.history[t]['data'] for t in range(2)] == [b.history[t]['data'] for t in range(2)]

def test_the_number_of_clients_is_that_of_the_data(tmp_path, make_cfg):
    data = get_client_data(FedConfig(data=wards(tmp_path/'d'), holdout_share=.1))
    s = Server_mira(make_cfg(num_clients=None, rounds=1), data, callbacks=[])
    assert (s.num_clients, s.cfg.num_clients) == (3, 3) and 'holdout_loss' in s.fit()[0]
    with pytest.raises(ConfigError, match=r'`num_clients`: expected 3'): Server_mira(make_cfg(num_clients=2), data, callbacks=[])
    with pytest.raises(ConfigError, match=r'`ranks`: expected 3 integers'):
        Server_mira(make_cfg(num_clients=None, ranks=[1,2]), data, callbacks=[])

bad_settings = [
    (dict(partition='iid'), "`num_clients`: expected a number, with partition 'iid', got None"),
    (dict(num_clients=7), r'`num_clients`: expected 3 \(one a file\), or nothing, got 7'),
    (dict(partition='column'), '`partition_args`: expected {column: NAME}'),
    (dict(partition='column', partition_args={'column': 'hospital'}), 'hospital'),
    (dict(partition='task', partition_args={'alpha': 1}), "`partition_args`: expected none for partition 'task'"),
    (dict(partition='dirichlet', num_clients=3, partition_args={'alfa': 1}), 'alfa'),
    (dict(partition='dirichlet', num_clients=3, partition_args={'alpha': -1}), 'alpha'),
    (dict(partition='iid', num_clients=500), 'num_clients'),
    (dict(unseen_clients=3), 'unseen|at least one client'),
    (dict(unseen_clients=['ward9']), 'ward9'),
    (dict(unseen_tasks=['od']), r"`unseen_tasks`: expected tasks of the data: even, odd \(did you mean 'odd'\?\), got 'od'"),
    (dict(min_examples=35), 'client ward0: expected at least 35 different questions'),
    (dict(partition='client'), "`partition`: expected one that needs no `client`, since no example has one, got 'client'"),
    (dict(partition='client', on_bad='drop'), "`partition`: expected one that needs no `client`"),
    (dict(data_format='dolli'), "did you mean 'dolly'"),
    (dict(columns={'instruktion': 'a'}), "did you mean 'instruction'"),
    (dict(data_args={'splitt': 'train'}), "did you mean 'split'"),
]
@pytest.mark.parametrize('fields,says', bad_settings, ids=lambda o: str(o)[:60])
def test_settings_that_cannot_be_used_are_named(tmp_path, fields, says):
    with pytest.raises((ConfigError,DataError), match=says): get_client_data(FedConfig(data=wards(tmp_path/'d'), **fields))

def test_one_file_wants_a_partition(tmp_path):
    write(tmp_path/'all.jsonl', [dict(instruction=str(i), output='x', client=f'c{i%3}') for i in range(30)])
    assert get_client_data(FedConfig(data=str(tmp_path/'all.jsonl'))).names == ['c0','c1','c2']
    write(tmp_path/'some.jsonl', [dict(instruction=str(i), output='x', **(dict(client='a') if i else {})) for i in range(30)])
    with pytest.raises(DataError, match='some.jsonl, line 1: no `client`'): get_client_data(FedConfig(data=str(tmp_path/'some.jsonl')))
    left = get_client_data(FedConfig(data=str(tmp_path/'some.jsonl'), on_bad='drop'))
    assert left.dropped == 1 and len(left[0]['train']) + len(left[0]['test']) == 29
    write(tmp_path/'plain.jsonl', [dict(instruction=str(i), output='x') for i in range(30)])
    says = r"`partition`: expected one that needs no `task`, since no example has one, or `partition_args: {by: COLUMN}`, got 'dirichlet'"
    for bad in ('error','drop'):
        cfg = FedConfig(data=str(tmp_path/'plain.jsonl'), partition='dirichlet', num_clients=3, on_bad=bad)
        with pytest.raises(ConfigError, match=says): get_client_data(cfg)
    with pytest.raises(ConfigError, match='`partition`: expected a way to make clients out of one file'):
        get_client_data(FedConfig(data=str(tmp_path/'plain.jsonl')))

def test_what_is_dropped_is_counted_and_named(tmp_path):
    folder = wards(tmp_path/'d')
    with open(tmp_path/'d'/'ward1.jsonl', 'a') as f: f.write('{"instruction": "x"}\n{"instruction": "y", "output": 3}\nnot json\n')
    write(tmp_path/'d'/'ward9.jsonl', [dict(instruction='only', output='one')])
    with pytest.raises(DataError, match='ward1.jsonl, line 41'): get_client_data(FedConfig(data=folder))
    d = get_client_data(FedConfig(data=folder, on_bad='drop'))
    assert (d.names, d.dropped, d.left_out) == (['ward0','ward1','ward2'], 3, [('ward9','1 different questions')])
    assert [w.split('/')[-1] for w,_ in d.where] == ['ward1.jsonl, line 41','ward1.jsonl, line 42','ward1.jsonl, line 43']
    assert '3 examples left out' in d.describe() and 'd/ward1.jsonl, line 42' in d.describe() and 'ward9: 1 different' in d.describe()

def test_answers_that_do_not_fit_are_named_by_their_line(tmp_path, make_cfg):
    folder = wards(tmp_path/'d')
    with open(tmp_path/'d'/'ward1.jsonl', 'a') as f: f.write(json.dumps(dict(instruction='long', output='x y '*400)) + '\n')
    data = get_client_data(FedConfig(data=folder, test_share=.1))
    assert any(e['instruction'] == 'long' for e in data[1]['train'])
    cfg = make_cfg(num_clients=3, max_length=64)
    with pytest.raises(DataError, match='ward1.jsonl, line 41: the answer has .* `max_length` 64'): BaseServer(cfg, data, callbacks=[])
    assert not Path(cfg.output_dir).exists()   # found before anything is written
    s = BaseServer(make_cfg(num_clients=3, max_length=64, on_bad='drop', rounds=1), data, callbacks=[])
    with pytest.warns(UserWarning, match='client 1, train: 1 examples dropped'): s.fit()
    p = Prompter(get_tokenizer(s.cfg), max_length=64)
    assert token_facts(data, p, 'drop')['dropped'] == 1 and 'ward1.jsonl, line 41' in show_data(data, p, on_bad='drop')

def test_what_does_not_fit_is_found_before_anything_is_written(tmp_path, make_cfg):
    "Also with a newcomer, who comes last of all; and where nothing that fits is left to a client."
    folder = wards(tmp_path/'d')
    write(tmp_path/'d'/'ward9.jsonl', [dict(instruction=f'long {i}', output='x y '*400) for i in range(2)])
    for fields,says in ((dict(), 'ward9.jsonl, line [12]: the answer has'),
                        (dict(unseen_clients=['ward9']), 'ward9.jsonl, line [12]: the answer has'),
                        (dict(on_bad='drop'), 'client 3: none of its 1 train examples fits in `max_length` 64')):
        cfg = make_cfg(num_clients=None, max_length=64, data=folder, **fields)
        with pytest.raises(DataError, match=says): BaseServer(cfg, get_client_data(cfg), callbacks=[])
        assert not os.path.exists(cfg.output_dir)

def test_show_data_shows_what_is_learned(tmp_path):
    data,p = get_client_data(FedConfig(data=wards(tmp_path/'d'))),Prompter(get_tokenizer(FedConfig(model='tiny')), 'instruction')
    text = show_data(data, p, ['ward2'], 1)
    e = data[2]['train'][0]
    assert f"masked  | {e['instruction']}" in text and f"learned | {e['output']}<|end|>" in text
    assert 'client 2 (ward2)' in text and '### Response' in text
    assert '\033[2m### Instruction' in show_data(data, p, 1, 1, colour=True)
    with pytest.raises(ConfigError, match="`clients`: expected names or numbers of clients, 0 to 2"): show_data(data, p, ['ward7'])

def test_a_leak_between_clients_is_counted(tmp_path):
    "A client too small for a share takes its lowest question for the test, which another may train on."
    write(tmp_path/'d'/'a.jsonl', [dict(instruction=str(i), output='x') for i in range(100)])
    write(tmp_path/'d'/'b.jsonl', [dict(instruction=str(i), output='x') for i in range(100)][:2])
    d = get_client_data(FedConfig(data=str(tmp_path/'d')))
    train,test = {q for c in d for q in asked(c['train'])},{q for c in d for q in asked(c['test'])}
    assert d.same_questions() == len(train & test)

some = st.lists(st.integers(0, 9), max_size=6)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(some, some), min_size=1, max_size=4))
def test_leaks_by_a_plain_count(clients):
    def exs(numbers): return [dict(instruction=f'question {i}', output='x') for i in numbers]
    data = ClientData([dict(train=exs(a), test=exs(b)) for a,b in clients])
    assert data.same_questions() == len({i for a,_ in clients for i in a} & {i for _,b in clients for i in b})

def test_from_the_readme_as_a_new_user(tmp_path):
    "The README's two commands for one's own data, on a folder of files in three formats."
    for k,ext in enumerate(('jsonl','json','csv')):
        exs = [dict(instruction='Add.', input=f'{i} + {k}', output=str(i+k), task='add') for i in range(20)]
        (tmp_path/'wards').mkdir(exist_ok=True)
        p = tmp_path/'wards'/f'ward{k}.{ext}'
        if ext == 'jsonl': write(p, exs)
        elif ext == 'json': p.write_text(json.dumps(exs))
        else:
            rows = [f"{e['instruction']},{e['input']},{e['output']},{e['task']}\n" for e in exs]
            p.write_text('instruction,input,output,task\n' + ''.join(rows))
    env = {**os.environ, 'PYTHONPATH': os.getcwd(), 'FEDAI_CACHE': str(tmp_path/'cache')}
    def fedai(*argv):
        code = 'import sys; from fedai.cli import main; sys.exit(main(sys.argv[1:]))'
        return subprocess.run([sys.executable, '-c', code, *argv], cwd=tmp_path, capture_output=True, text=True, env=env)
    r = fedai('show-data', '--data', 'wards', '--model', 'tiny', '--plot', 'who.png')
    assert r.returncode == 0 and '3 clients, one a file' in r.stdout and 'learned | ' in r.stdout, r.stderr
    assert (tmp_path/'who.png').stat().st_size > 5000
    r = fedai('show-data', '--data', 'wards', '--model', 'tiny', '--json')
    assert json.loads(r.stdout)['clients'] == 3
    r = fedai('run', '--data', 'wards', '--model', 'tiny', '--graph', 'learned', '--rounds', '2', '--local_step', '2',
              '--max_new_tokens', '4', '--output_dir', 'runs/wards')
    assert r.returncode == 0 and 'round 2/2' in r.stdout and 'Traceback' not in r.stderr, r.stderr
    assert len(json.loads((tmp_path/'runs'/'wards'/'scorecard.json').read_text())['clients']) == 3
    with open(tmp_path/'wards'/'ward0.jsonl', 'a') as f: f.write('{"instruction": "a", "output": ""}\n')
    r = fedai('run', '--data', 'wards', '--model', 'tiny', '--output_dir', 'runs/other')
    assert (r.returncode, r.stderr) == (2, 'fedai: wards/ward0.jsonl, line 21: `output` is empty\n')
    assert not (tmp_path/'runs'/'other').exists()

def test_turns_that_many_conversations_end_with_are_no_duplicates(tmp_path):
    def turns(i):
        said = (('system','be short'), ('user',f'tell me of number {i} and its uses in daily life'),
                ('assistant',f'number {i*i} is what it makes when squared'), ('user','and now please tell me some more'),
                ('assistant',f'it is {i}'))
        return [dict(role=r, content=c) for r,c in said]
    (tmp_path/'c.jsonl').write_text('\n'.join(json.dumps(dict(client=f'c{i%2}', messages=turns(i))) for i in range(20)))
    data = get_client_data(FedConfig(model='tiny', data=str(tmp_path/'c.jsonl'), data_args={'turns': 'last'}))
    assert {e['instruction'] for d in data for s in d for e in d[s]} == {'and now please tell me some more'}
    as_lists = ClientData([{s: list(d[s]) for s in d} for d in data])
    for d in (data, as_lists): assert d.near_duplicates()['exact'] == 0
    twice = ClientData([{'train': as_lists[0]['train'], 'test': as_lists[0]['train'][:1]}])
    assert twice.near_duplicates()['exact'] == 1
