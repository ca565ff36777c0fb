"Every format in the shape it is published in, every bad file with its place, and what is kept of them from one start to the next."
import gzip, io, json, os, shlex
import datasets, pyarrow as pa, pyarrow.parquet as pq, pytest
from fedai.cli import main
from fedai.config import ConfigError, FedConfig
from fedai.data.clients import get_client_data, token_facts
from fedai.models import get_tokenizer
from fedai.data.prompts import DataError, Prompter, encode_all
from fedai.data.sources import Source
from fedai.data.tables import ExampleTable

@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch): monkeypatch.setenv('FEDAI_CACHE', str(tmp_path/'cache'))

def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content)).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == '.gz' else raw)
    return path

def lines(*recs): return ''.join(json.dumps(o) + '\n' for o in recs)

def gives(path, expected, **how):
    "A source gives exactly these examples, each with its place, and a table of them the same."
    src = Source(path, **how)
    got = list(src)
    assert [e.pop('place') for e in got] == [o[0] for o in expected]
    for e,(_,o) in zip(got, expected):
        assert {**e, 'conversation': '?'} == {**o, 'conversation': '?'} and ('conversation' in e) == ('messages' in e)
    keep = how.get('keep', ())
    table = ExampleTable.make(src, keep=keep)
    for e in got: e.pop('conversation', None)
    assert [table.example(i) for i in range(len(table))] == got and len(table) == len(expected)

# each format, as it is published

def test_natural_instructions(tmp_path):
    "A task file: the definition, and instances with one or several right outputs. Its own examples, positive and negative, aren't data."
    def task(definition, *instances):
        return {'Contributors': ['A B'], 'Source': ['winogrande'], 'URL': ['https://x'], 'Categories': ['Question Generation'],
                'Reasoning': [], 'Definition': [definition], 'Input_language': ['English'], 'Output_language': ['English'],
                'Instruction_language': ['English'], 'Domains': ['Commonsense'],
                'Positive Examples': [{'input': 'p', 'output': 'P', 'explanation': 'good'}],
                'Negative Examples': [{'input': 'n', 'output': 'N', 'explanation': 'bad'}],
                'Instances': [dict(id=f'task1-{i}', input=q, output=a) for i,(q,a) in enumerate(instances)], 'Instance License': ['MIT']}
    a = put(tmp_path/'t'/'task1_add.json', task('Add the numbers.', ('3 4', ['7','seven','7']), ('1 1', ['2'])))
    b = put(tmp_path/'t'/'task2_name.json', task('Name a colour.', ('', ['red'])))
    gives(tmp_path/'t',
          [(f'{a}, item 0',
            dict(instruction='Add the numbers.', input='3 4', output='7', references=['7','seven'], task='task1_add', file='task1_add')),
           (f'{a}, item 1', dict(instruction='Add the numbers.', input='1 1', output='2', task='task1_add', file='task1_add')),
           (f'{b}, item 0', dict(instruction='Name a colour.', output='red', task='task2_name', file='task2_name'))])

def test_dolly(tmp_path):
    p = put(tmp_path/'databricks-dolly-15k.jsonl',
            lines(dict(instruction='When did it start?', context='It started in 2000.', response='2000', category='closed_qa'),
                  dict(instruction='Name a fish.', context='', response='Tope', category='open_qa')))
    gives(p,
          [(f'{p}, line 1',
            dict(instruction='When did it start?', input='It started in 2000.', output='2000', task='closed_qa',
                 file='databricks-dolly-15k')),
           (f'{p}, line 2', dict(instruction='Name a fish.', output='Tope', task='open_qa', file='databricks-dolly-15k'))])

def test_alpaca(tmp_path):
    recs = [dict(instruction='Give three tips.', input='', output='1. Eat\n2. Sleep\n3. Rest'),
            dict(instruction='Classify.', input='Car', output='Vehicle')]
    p = put(tmp_path/'alpaca_data.json', recs)
    one,two = dict(instruction='Give three tips.', output='1. Eat\n2. Sleep\n3. Rest', file='alpaca_data'),dict(recs[1], file='alpaca_data')
    gives(p, [(f'{p}, item 0', one), (f'{p}, item 1', two)])
    gives(p, [(f'{p}, item 0', one), (f'{p}, item 1', two)], format='alpaca')
    # Alpaca has three columns; said by name, others are no concern
    q = put(tmp_path/'more.jsonl', lines(dict(recs[1], task='x', client='y', references=['z'])))
    gives(q, [(f'{q}, line 1', dict(recs[1], file='more'))], format='alpaca')

user,assistant = (lambda t: dict(role='user', content=t)),(lambda t: dict(role='assistant', content=t))

def test_sharegpt(tmp_path):
    "An example for each answer; a question at the end that nobody answers is left out."
    said = [('system','Be kind.'), ('human','Hi'), ('gpt','Hello.'), ('human','2 + 2?'), ('gpt','4'), ('human','Why?')]
    p = put(tmp_path/'sharegpt.json', [dict(id='a1', conversations=[{'from': f, 'value': v} for f,v in said])])
    head = dict(role='system', content='Be kind.')
    both = [(f'{p}, item 0', dict(messages=[head,user('Hi')], instruction='Hi', output='Hello.', file='sharegpt')),
            (f'{p}, item 0',
             dict(messages=[head,user('Hi'),assistant('Hello.'),user('2 + 2?')], instruction='2 + 2?', output='4', file='sharegpt'))]
    gives(p, both)
    gives(p, both[1:], args=dict(turns='last'))
    assert len({e['conversation'] for e in Source(p)}) == 1

def test_messages(tmp_path):
    "With the further columns that such data sets have (here UltraChat's)."
    p = put(tmp_path/'chat.jsonl',
            lines(dict(prompt='Hi', prompt_id='f0', messages=[user('Hi'),assistant('Hello.'),user('2 + 2?'),assistant('4')], client='ann',
                       task='chat')))
    more = dict(file='chat', client='ann', task='chat')
    gives(p,
          [(f'{p}, line 1', dict(messages=[user('Hi')], instruction='Hi', output='Hello.', **more)),
           (f'{p}, line 1', dict(messages=[user('Hi'),assistant('Hello.'),user('2 + 2?')], instruction='2 + 2?', output='4', **more))])

big = {'canary': 'BIG-BENCH-GUID', 'name': 'dates', 'description': 'Days', 'keywords': ['time'], 'metrics': ['exact_str_match'],
       'preferred_score': 'exact_str_match'}

def test_bigbench_target(tmp_path):
    p = put(tmp_path/'dates'/'task.json',
            {**big, 'task_prefix': 'Say the day.\n',
             'examples': [dict(input='After Sunday?', target='Monday'), dict(input='Before Sunday?', target=['Saturday','Sat'])]})
    gives(p,
          [(f'{p}, item 0', dict(instruction='Say the day.\n\nQ: After Sunday?\nA:', output='Monday', task='dates', file='task')),
           (f'{p}, item 1',
            dict(instruction='Say the day.\n\nQ: Before Sunday?\nA:', output='Saturday', references=['Saturday','Sat'], task='dates',
                 file='task'))])

def test_bigbench_target_scores(tmp_path):
    "The choices are shown, in an order of their own for each question; those with the highest score are right."
    scores = [{'Monday': 1, 'Tuesday': 0, 'Friday': 0}, {'yes': .5, 'yeah': .5, 'no': 0}, {'b': 1, 'a': -1}]
    p = put(tmp_path/'task.json',
            {**big, 'append_choices_to_input': True, 'examples': [dict(input=f'Which {i}?', target_scores=s) for i,s in enumerate(scores)]})
    got = list(Source(p))
    for i,(e,s,right) in enumerate(zip(got, scores, [['Monday'],['yes','yeah'],['b']])):
        assert sorted(e['choices']) == sorted(s) and e['task'] == 'dates'
        assert e['instruction'] == f'Q: Which {i}?' + ''.join(f'\n  choice: {c}' for c in e['choices']) + '\nA:'
        assert (e['output'], e.get('references')) == (right[0], right if len(right) > 1 else None)
    q = put(tmp_path/'silent.json',
            {**big, 'append_choices_to_input': False, 'example_input_prefix': '', 'example_output_prefix': ' ',
             'examples': [dict(input='The sun', target_scores={'shines': 1, 'barks': 0}, target='glows')]})
    gives(q,
          [(f'{q}, item 0',
            dict(instruction='The sun', output='shines', references=['shines','glows'], choices=list(Source(q))[0]['choices'], task='dates',
                 file='silent'))])
    assert sorted(list(Source(q))[0]['choices']) == ['barks','shines']

def test_prompt_and_completion(tmp_path):
    p = put(tmp_path/'pc.jsonl', lines(dict(prompt='2 + 2 =', completion=' 4', task='add')))
    gives(p, [(f'{p}, line 1', dict(instruction='2 + 2 =', output=' 4', task='add', file='pc'))])

OURS = [dict(instruction='Add.', input='3\n4', output='7', task='add', client='ann'),
        dict(instruction='Say "hi", loud.', input='', output='HI, "hi"!', task='say', client='bob'),
        dict(instruction='Größer?', input='é', output='ja ✓', task='say', client='ann')]
def ours(p, how='line', first=1):
    return [(f'{p}, {how} {i+first}', {k: v for k,v in e.items() if v} | dict(file='d')) for i,e in enumerate(OURS)]
def as_csv(sep=','):
    return sep.join(OURS[0]) + '\r\n' + ''.join(sep.join('"' + v.replace('"', '""') + '"' for v in e.values()) + '\r\n' for e in OURS)
def as_parquet(cols):
    f = io.BytesIO()
    pq.write_table(cols if isinstance(cols, pa.Table) else pa.table(cols), f)
    return f.getvalue()
def as_arrow(stream):
    f,t = io.BytesIO(),pa.Table.from_pylist(OURS)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(f, t.schema) as w: w.write_table(t)
    return f.getvalue()

containers = {'d.jsonl': lines(*OURS), 'd.ndjson': lines(*OURS), 'd.jsonl.gz': lines(*OURS), 'd.json': json.dumps(OURS, indent=2),
              'd.json.gz': OURS, 'd.csv': as_csv(), 'd.csv.gz': as_csv(), 'd.tsv': as_csv('\t'), 'd.tsv.gz': as_csv('\t'),
              'd.parquet': as_parquet(pa.Table.from_pylist(OURS)), 'd.arrow': as_arrow(False), 'd.Arrow': as_arrow(True),
              'd.JSONL': '\ufeff' + lines(*OURS)}
@pytest.mark.parametrize('name', containers)
def test_containers(tmp_path, name):
    "Our own form in each container: text as it was written, quotes, new lines and all."
    p = put(tmp_path/name, containers[name])
    at = {'json': ours(p, 'item', 0), 'parquet': ours(p, 'row', 0), 'arrow': ours(p, 'row', 0),
          'csv': [(f'{p}, line {n}', e) for n,(_,e) in zip((2,4,5), ours(p))]}
    at['tsv'] = at['csv']
    gives(p, at.get(name.lower().split('.')[1], ours(p)))

def test_every_field_of_ours(tmp_path):
    e = dict(instruction='Pick.', input='a or b', output='a', references=['a','A'], choices=['a','b'], task='pick', client='c1')
    p = put(tmp_path/'all.jsonl', lines({**e, 'note': 'unknown fields are passed over'}))
    gives(p, [(f'{p}, line 1', dict(e, file='all'))])
    q = put(tmp_path/'all.json', dict(data=[{**e, 'client': 7, 'references': []}], version=1))
    gives(q, [(f'{q}, item 0', {k: v for k,v in e.items() if k != 'references'} | dict(client='7', file='all'))])

def test_a_folder_of_all_sorts(tmp_path):
    "Each file is what it is, whatever stands beside it; README, hidden files and such are passed over, anything else is refused."
    d = tmp_path/'mixed'
    a = put(d/'a.csv', 'instruction,output\nq,a\n')
    b = put(d/'deep'/'b.json', [dict(instruction='q', context='c', response='b', category='k')])
    c = put(d/'deep'/'c.jsonl.gz', lines(dict(messages=[user('q'),assistant('c')])))
    for o in ('README.md','LICENSE','.hidden','notes.md','deep/dataset_info.json'): put(d/o, 'x')
    want = [(f'{a}, line 2', dict(instruction='q', output='a', file='a')),
            (f'{b}, item 0', dict(instruction='q', input='c', output='b', task='k', file='b')),
            (f'{c}, line 1', dict(messages=[user('q')], instruction='q', output='c', file='c'))]
    gives(d, want)
    gives(f'{d}/deep/*.json*', want[1:])
    gives(f'{d}/**/*.csv', want[:1])
    put(d/'notes.docx', 'x')
    with pytest.raises(ConfigError,
                       match=r"`data`: expected files named \.jsonl, .* and no others, or a pattern such as '.*\*\.jsonl', got "
                             r"'.*notes.docx'"):
        Source(d)

def test_folders_of_save_to_disk(tmp_path):
    ds = datasets.Dataset.from_list(OURS)
    ds.save_to_disk(tmp_path/'d')
    def of(folder):
        return [(f'{folder}/data-00000-of-00001.arrow, row {i}', {k: v for k,v in e.items() if v} | dict(file='data-00000-of-00001'))
                for i,e in enumerate(OURS)]
    gives(tmp_path/'d', of(tmp_path/'d'))
    datasets.DatasetDict(train=ds.select([0]), test=ds).save_to_disk(tmp_path/'dd')
    gives(tmp_path/'dd', of(tmp_path/'dd'/'train')[:1])
    gives(tmp_path/'dd', of(tmp_path/'dd'/'test'), args=dict(split='test'))
    with pytest.raises(ConfigError, match="split`: expected one of 'train', 'test', got 'tset'"):
        Source(tmp_path/'dd', args=dict(split='tset'))

films = [('Great!',1,[0,1]), ('Boring.',0,[1]), ('Tell me.',-1,[])]
def film_reviews():
    one = datasets.ClassLabel(names=['negative','positive'])
    return datasets.Dataset.from_dict(dict(zip(('text','label','tags'), map(list, zip(*films)))),
                                      features=datasets.Features(text=datasets.Value('string'), label=one,
                                                                 tags=datasets.List(datasets.ClassLabel(names=['old','new']))))

@pytest.mark.parametrize('how', ['parquet','save_to_disk','datasets'])
def test_class_labels_are_their_names(tmp_path, monkeypatch, how):
    "As the output, as one of several, and as a column that is carried along; -1 is none."
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path/'hf'))
    p,ds = tmp_path/'d'/'films.parquet',film_reviews()
    p.parent.mkdir()
    ds.save_to_disk(p.parent) if how == 'save_to_disk' else ds.to_parquet(p)
    more = dict(path=p.parent, format='datasets') if how == 'datasets' else dict(path=p.parent)
    def of(col, **kw):
        src = Source(**more, columns=dict(instruction='text', output=col), on_bad='drop', **kw)
        return [{k: v for k,v in e.items() if k not in ('file','place')} for e in src]
    assert of('label') == [dict(instruction='Great!', output='positive'), dict(instruction='Boring.', output='negative')]
    assert of('tags', keep=['label']) == [dict(instruction='Great!', output='old', references=['old','new'], label='positive'),
                                          dict(instruction='Boring.', output='new', label='negative')]
    assert [e['output'] for e in of('label', args=dict(labels=dict(positive='+', negative='-')))] == ['+','-']

def test_a_parquet_file_of_others_keeps_its_numbers(tmp_path):
    "Only what the datasets library wrote down about a column names its numbers."
    p = put(tmp_path/'p.parquet',
            as_parquet(pa.table(dict(instruction=['q','r'], output=[1,0])).replace_schema_metadata({'pandas': '{}',
                                                                                                    'huggingface': '{"version": 1}'})))
    with pytest.raises(DataError, match='row 0: `output` must be text, got 1 .*labels'): list(Source(p))
    gives(p, [(f'{p}, row 0', dict(instruction='q', output='b', file='p')), (f'{p}, row 1', dict(instruction='r', output='a', file='p'))],
          args=dict(labels=['a','b']))

@pytest.mark.parametrize('ext', ['jsonl','csv'])
def test_numbers_with_names(tmp_path, ext):
    rows = [dict(instruction='q', output=4), dict(instruction='r', output=0), dict(instruction='s', output=2)]
    p = put(tmp_path/f'n.{ext}',
            lines(*rows) if ext == 'jsonl' else 'instruction,output\n' + ''.join(f"{r['instruction']},{r['output']}\n" for r in rows))
    first = 2 if ext == 'csv' else 1
    def of(*outputs):
        return [(f'{p}, line {i+first}', dict(instruction=q, output=o, file='n')) for i,(q,o) in enumerate(zip('qrs', outputs))]
    gives(p, of('good','bad','so so'), args=dict(labels={0: 'bad', 4: 'good', '2': 'so so'}))
    gives(p, of('e','a','c'), args=dict(labels=list('abcde')))
    gives(p, of('4','0','2'), args=dict(labels='text'))
    src = Source(p, args=dict(labels={0: 'bad', 4: 'good'}), on_bad='drop')
    assert [e['output'] for e in src] == ['good','bad']
    got = rows[2]['output'] if ext == 'jsonl' else '2'
    assert src.dropped == [(f'{p}, line {first+2}', f"`output` must be one of '0', '4', which `data_args: labels` names, got {got!r}")]

@pytest.mark.parametrize('labels', [[], {}, [False,True], ['a',' '], 'numbers', 3, {0: 'a', 1: None}])
def test_names_that_are_none(tmp_path, labels):
    with pytest.raises(ConfigError,
                       match=r"`data_args: labels`: expected a list of names, for 0, 1, ..., a mapping of values to names, or 'text', got"):
        Source(put(tmp_path/'d.csv', 'instruction,output\nq,0\n'), args=dict(labels=labels))

@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A folder as it lies on the Hub, and the datasets library with a cache of its own."
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path/'hf'))
    def make(name, **splits):
        for k,v in splits.items(): put(tmp_path/name/'data'/f'{k}.jsonl', lines(*v))
        return str(tmp_path/name)
    return make

def test_hugging_face_datasets(hub):
    "As `load_dataset` gives it, by rows; the same for a name on the Hub, but for where it comes from."
    d = hub('mine', train=[dict(question='3 + 4', answers=dict(text=['7','seven'])), dict(question='1 + 1', answers=dict(text=['2']))],
            test=[dict(question='q', answers=dict(text=['t']))])
    how = dict(format='datasets', columns=dict(instruction='question', output='answers.text'))
    gives(d,
          [(f'{d} [train], row 0', dict(instruction='3 + 4', output='7', references=['7','seven'])),
           (f'{d} [train], row 1', dict(instruction='1 + 1', output='2'))], **how)
    gives(d, [(f'{d} [test], row 0', dict(instruction='q', output='t'))], args=dict(split='test'), **how)

def test_a_hugging_face_dataset_that_changed_is_read_anew(hub, monkeypatch):
    "What is kept goes by content: the same rows are the same entry wherever `datasets` has them, one other letter is another entry."
    rows = [dict(instruction=f'q{i}', output=f'a{i}', client=f'c{i%2}') for i in range(20)]
    cfg = FedConfig(data=hub('mine', train=rows), data_format='datasets')
    def all_of(data): return sorted(e['output'] for d in data for s in d for e in d[s])
    first,prints = get_client_data(cfg),[Source(cfg.data, 'datasets').fingerprint()]
    assert all_of(first) == sorted(e['output'] for e in rows)
    with monkeypatch.context() as m:   # the second start reads none of it
        m.setattr(Source, '__iter__', None)
        assert get_client_data(cfg) == first
    os.utime(cfg.data + '/data/train.jsonl', (1,1))   # another file for `datasets`, but the same rows
    prints.append(Source(cfg.data, 'datasets').fingerprint())
    hub('mine', train=[*rows[:19], dict(rows[19], output='A19')])
    prints.append(Source(cfg.data, 'datasets').fingerprint())
    assert all_of(get_client_data(cfg)) == sorted([*(e['output'] for e in rows[:19]), 'A19'])
    hub('mine', train=[*rows[1:], rows[0]])
    prints.append(Source(cfg.data, 'datasets').fingerprint())
    assert prints[0] == prints[1] and len(set(prints)) == 3

def test_reasoning_gym():
    import reasoning_gym
    args = dict(tasks={'gcd': dict(max_value=20), 'chain_sum': {}}, size=4)
    got = list(Source('reasoning-gym', args=args, seed=3))
    assert [e['task'] for e in got] == ['gcd']*4 + ['chain_sum']*4 and len({e['instruction'] for e in got}) == 8
    for e in got:
        assert {k: e[k] for k in ('instruction','input','output')} == dict(instruction=e['entry']['question'], input='',
                                                                           output=e['entry']['answer'])
        assert reasoning_gym.get_score_answer_fn(e['task'])(e['output'], e['entry']) == 1   # the library's own scorer
    assert list(Source('reasoning-gym', args=args, seed=3)) == got and list(Source('reasoning-gym', args=args, seed=4)) != got

def test_columns_are_mapped(tmp_path):
    recs = [dict(question='Why?', meta=dict(context='c', hospital=3), answer='so', kind='w'),
            dict(question='How?', meta=dict(context='', hospital=4), answer='thus', kind='h')]
    p = put(tmp_path/'qa.jsonl', lines(*recs))
    gives(p,
          [(f'{p}, line 1', dict(instruction='Why?', input='c', output='so', task='w', client='3', file='qa', kind='w')),
           (f'{p}, line 2', dict(instruction='How?', output='thus', task='h', client='4', file='qa', kind='h'))],
          columns=dict(instruction='question', input='meta.context', output='answer', task='kind', client='meta.hospital'), keep=['kind'])
    # what is mapped goes before what the format says
    q = put(tmp_path/'dolly.csv', 'instruction,context,response,category,who\nq,c,a,k,z\n')
    gives(q, [(f'{q}, line 2', dict(instruction='q', input='c', output='a', task='z', file='dolly'))], columns=dict(task='who'))
    with pytest.raises(DataError, match=r"qa.jsonl, line 1: no column 'answr' \(did you mean 'answer'\?\), which `columns` names"):
        list(Source(p, columns=dict(instruction='question', output='answr')))
    with pytest.raises(DataError,
                       match=r"qa.jsonl, line 1: no known format in the columns 'question', 'meta', 'answer', 'kind'; say which is "
                             r"which, such as `columns: \{instruction: question, output: answer\}`"):
        list(Source(p))

def test_the_format_is_said(tmp_path):
    "A container under another name; a schema where a file would be taken for another, or isn't of it."
    p = put(tmp_path/'export.txt', as_csv(';'))
    gives(p,
          [(o.replace('line 3', 'line 4').replace('d.csv', 'export.txt'), dict(e, file='export'))
           for o,(_,e) in zip((f'{p}, line 2', f'{p}, line 4', f'{p}, line 5'), ours(p))], format='csv', args=dict(delimiter=';'))
    q = put(tmp_path/'d.jsonl', lines(dict(instruction='q', context='c', response='r', output='o', category='k')))
    gives(q, [(f'{q}, line 1', dict(instruction='q', output='o', file='d'))])
    gives(q, [(f'{q}, line 1', dict(instruction='q', input='c', output='r', task='k', file='d'))], format='dolly')
    with pytest.raises(DataError,
                       match="d.jsonl, line 1: not of the format 'sharegpt', which has 'conversations', in the columns 'instruction', "
                             "'context', 'response', 'output', 'category'"):
        list(Source(q, format='sharegpt'))

# the table of bad data

GOOD = [dict(instruction=f'q{i}', output=f'a{i}') for i in range(3)]
X = dict(instruction='x', output='y')
def js(o): return o if isinstance(o, bytes) else json.dumps(o).encode()
def jl(*bad): return b'\n'.join(map(js, [GOOD[0], *bad, *GOOD[1:]]))
def jlist(*bad, **top): return b'[' + b',\n'.join(map(js, [GOOD[0], *bad, *GOOD[1:]])) + b']'
def table(*bad, head='instruction,output'): return b'\n'.join([head.encode(), b'q0,a0', *bad, b'q1,a1', b'q2,a2']) + b'\n'
def chats(*bad):
    return b'\n'.join(js(dict(messages=m) if isinstance(m, list) else m)
                      for m in [[user('q0'),assistant('a0')], *bad, [user('q1'),assistant('a1')], [user('q2'),assistant('a2')]])
def bb(*bad):
    return js({**big, 'example_input_prefix': '', 'example_output_prefix': '', 'append_choices_to_input': False,
               'examples': [dict(input='q0', target='a0'), *bad, dict(input='q1', target='a1'), dict(input='q2', target='a2')]})
def ni(*bad, what='d'):
    return js(dict(Definition=[what],
                   Instances=[dict(id='1', input='q0', output=['a0']), *bad, dict(id='2', input='q1', output=['a1']),
                              dict(id='3', input='q2', output=['a2'])]))
def columns(**cols): return as_parquet(cols)

# Name of the case, ending of the file, its content, and what is wrong with it behind the file's name: a list is of bad examples, which may
# be dropped; a text, what is an error either way; a dict, for each way, where they differ; None, nothing, and `more` has good examples.
bad_data = [
    # fields
    ('an empty output', 'jsonl', jl(dict(X, output='')), [', line 2: `output` is empty']),
    ('an output of white space', 'jsonl', jl(dict(X, output=' \n\t')), [', line 2: `output` is empty']),
    ('names of two lines, or with what a terminal obeys', 'jsonl', jl(dict(X, client='a\nb'), dict(X, task='\x1b[2J')),
     [", line 2: `client` must be one line without control characters, got 'a\\nb'",
      ", line 3: `task` must be one line without control characters, got '\\x1b[2J'"]),
    ('an empty instruction', 'jsonl', jl(dict(X, instruction='')), [', line 2: `instruction` is empty']),
    ('no output', 'jsonl', jl(dict(instruction='x'), dict(output='y')),
     [', line 2: `output` is missing', ', line 3: `instruction` is missing']),
    ('no output in an item', 'json', jlist(dict(instruction='x')), [', item 1: `output` is missing']),
    ('a null', 'jsonl', jl(dict(X, output=None)), [', line 2: `output` is missing']),
    ('a number', 'jsonl', jl(dict(X, output=7), dict(X, input=7.5)),
     [', line 2: `output` must be text, got 7 (`data_args: {labels: [NAME, ...]}` names the numbers 0, 1, ..., `{labels: text}` takes '
      'them as text)', ', line 3: `input` must be text, got 7.5 (as text: "7.5")']),
    ('true', 'jsonl', jl(dict(X, output=True)), [', line 2: `output` must be text, got True']),
    ('a list for a text', 'jsonl', jl(dict(X, instruction=['a'])), [", line 2: `instruction` must be text, got ['a']"]),
    ('an object for a text', 'jsonl', jl(dict(X, input={'a': {'b': 1}})), [", line 2: `input` must be text, got {'a': {'b': 1}}"]),
    ('a number among the right answers', 'jsonl', jl(dict(X, output=['y',3.5])),
     [', line 2: `output` must be text or a list of text, got 3.5 in the list']),
    ('no right answer', 'jsonl', jl(dict(X, output=[])), [', line 2: `output` is an empty list']),
    ('an empty right answer', 'jsonl', jl(dict(X, output=['y',''])), [', line 2: `references[1]` is empty']),
    ('references that begin with another', 'jsonl', jl(dict(X, references=['z'])),
     [", line 2: `references` must begin with `output`, got ['z']"]),
    ('an output that is no choice', 'jsonl', jl(dict(X, choices=['a','b'])),
     [", line 2: `output` must be one of `choices`, ['a', 'b'], got 'y'"]),
    ('one choice', 'jsonl', jl(dict(X, choices=['y','y'])), [", line 2: `choices` must have at least two different ones, got ['y', 'y']"]),
    ('a label that is a list', 'jsonl', jl(dict(X, task={'a': 1})), [', line 2: `task` must be text or a number, got dict']),
    ('not an object', 'jsonl', jl([1,2], 'text', None),
     [', line 2: expected an object, got list', ', line 3: expected an object, got str', ', line 4: expected an object, got NoneType']),
    ('ids that come twice', 'jsonl', jl(dict(X, id=1), dict(X, id=1, instruction='z')), None, [X, dict(X, instruction='z')]),
    # encodings
    ('invalid UTF-8', 'jsonl', jl(b'{"instruction": "x", "output": "caf\xe9"}'), [', line 2: invalid UTF-8: byte 0xe9 at byte 35']),
    ('invalid UTF-8 in a list', 'json', jlist(b'{"instruction": "x", "output": "caf\xe9"}'),
     ', line 2: invalid UTF-8: byte 0xe9 at byte 75'),
    ('invalid UTF-8 in a cell', 'csv', table(b'x,caf\xe9'), [', line 3: invalid UTF-8: byte 0xe9 in the row']),
    ('UTF-16', 'jsonl', jl().decode().encode('utf-16'),
     dict(error=', line 1: invalid UTF-8: byte 0xff at byte 0 (is the file UTF-16?)',
          drop=': none of its 3 examples can be used; the first: {p}, line 1: invalid UTF-8: byte 0xff at byte 0 (is the file UTF-16?)')),
    ('a byte order mark', 'jsonl', b'\xef\xbb\xbf' + jl(), None),
    ('a byte order mark', 'json', b'\xef\xbb\xbf' + jlist(), None),
    ('a byte order mark', 'csv', b'\xef\xbb\xbf' + table(), None),
    ('half a surrogate pair', 'jsonl', jl(b'{"instruction": "x", "output": "\\ud83d"}'),
     [", line 2: `output` has half of a surrogate pair, '\\ud83d', at character 0"]),
    ('a NUL', 'csv', table(b'x,y\0'), [', line 3: `output` has a NUL character (is the file UTF-16?)']),
    # JSON
    ('an invalid line', 'jsonl', jl(b'{"instruction": "x", "output": "y"', b'not json', b'{"output": "y}'),
     [", line 2: invalid JSON: Expecting ',' delimiter at character 34", ', line 3: invalid JSON: Expecting value at character 0',
      ', line 4: invalid JSON: Unterminated string at character 11']),
    ('two objects in a line', 'jsonl', jl(js(X) + js(X)), [', line 2: invalid JSON: more after the end at character 35']),
    ('a list that is cut off', 'json', b'\n\n' + jlist()[:-20], ', line 5: invalid JSON: Unterminated string at column 17'),
    ('lines in a .json file', 'json', jl(),
     ', line 2: invalid JSON: more after the end at column 1 (one object a line? then `data_format: jsonl`)'),
    ('a key that comes twice', 'jsonl', jl(b'{"instruction": "x", "output": "y", "output": "z"}'),
     [", line 2: the key 'output' comes twice in an object"]),
    ('NaN', 'jsonl', jl(b'{"instruction": "x", "output": NaN}', b'{"instruction": "x", "output": "y", "score": -Infinity}'),
     [", line 2: NaN isn't JSON", ", line 3: Infinity isn't JSON"]),
    ('a control character', 'jsonl', jl(b'{"instruction": "a\tb", "output": "y"}'),
     [', line 2: invalid JSON: Invalid control character at character 18']),
    ('brackets without an end', 'jsonl', jl(b'['*100_000), [', line 2: invalid JSON: nested too deeply']),
    ('an object with no list', 'json', b'{"a": 1}',
     ": expected a list of objects, or an object with one in 'Instances', 'examples', 'data', 'rows' or 'items', got the keys 'a'"),
    ('blank lines', 'jsonl', jl(b'', b'  \t', b'\r'), None),
    *[('an empty file', ext, b'', ': no examples in it') for ext in ('jsonl','json','csv','jsonl.gz')],
    ('an empty list', 'json', b'[]', ': no examples in it'),
    ('a header alone', 'csv', b'instruction,output\n', ': no examples in it'),
    # CSV
    ('too few cells', 'csv', table(b'x'), [', line 3: expected 2 cells, got 1']),
    ('too many cells', 'csv', table(b'x,y,z'), [', line 3: expected 2 cells, got 3']),
    ('a quoted line end and a comma', 'csv', table(b'"x\nx","y, ""y"""'), None, [dict(instruction='x\nx', output='y, "y"')]),
    ('a bad row behind a quoted line end', 'csv', table(b'"x\nx",y', b'x,'), [', line 5: `output` is empty'],
     [dict(instruction='x\nx', output='y')]),
    ('a quote that is never closed', 'csv', table(b'x,"y'), ', line 3: a quote is opened and never closed'),
    ('text behind a quote', 'csv', table(b'"x"x,y'), [", line 3: ',' expected after '\"'"]),
    ('an empty cell', 'csv', table(b'x,'), [', line 3: `output` is empty']),
    ('NaN and NA in cells', 'csv', table(b'x,NaN', b'NA,y'), None,
     [dict(instruction='x', output='NaN'), dict(instruction='NA', output='y')]),
    ('blank lines', 'csv', table(b'', b'\r'), None),
    ('two columns of one name', 'csv', table(head='output,output'), ", line 1: the column 'output' comes twice"),
    ('semicolons', 'csv', table().replace(b',', b';'),
     dict(error=", line 2: one column, 'instruction;output'; if ';' stands between columns, say `data_args: {delimiter: ';'}`",
          drop=": none of its 3 examples can be used; the first: {p}, line 2: one column, 'instruction;output'; if ';' stands between "
               "columns, say `data_args: {delimiter: ';'}`")),
    ('a space in the header', 'csv', table(head='instruction, output'),
     dict(error=", line 2: no known format in the columns 'instruction', ' output'; say which is which, such as `columns: {instruction: "
                "instruction, output: ' output'}`",
          drop=": none of its 3 examples can be used; the first: {p}, line 2: no known format in the columns 'instruction', ' output'; "
               "say which is which, such as `columns: {instruction: instruction, output: ' output'}`")),
    # binary files
    ('no Parquet file', 'parquet', b'PAR1 and that is all', ': not a whole Parquet file (...)'),
    ('a Parquet file that is cut off', 'parquet', columns(instruction=['q'], output=['a'])[:-9], ': not a whole Parquet file (...)'),
    ('an empty Parquet file', 'parquet', b'', ': not a whole Parquet file (...)'),
    ('a null in a row', 'parquet', columns(instruction=['q0','x','q1','q2'], output=['a0',None,'a1','a2']),
     [', row 1: `output` is missing']),
    ('NaN in a column of numbers', 'parquet', columns(instruction=['q0','x'], output=[float('nan'),1.]),
     dict(error=', row 0: `output` must be text, got nan (as text: "nan")',
          drop=': none of its 2 examples can be used; the first: {p}, row 0: `output` must be text, got nan (as text: "nan")')),
    ('NaN as a label', 'parquet', columns(instruction=['q0','x','q1','q2'], output=['a0','y','a1','a2'], client=[1.,float('nan'),1.,1.]),
     [', row 1: `client` is NaN']),
    ('no Arrow file', 'arrow', b'ARROW1 and that is all', ': not a whole Arrow file (...)'),
    ('no gzip file', 'jsonl.gz', None, ": not readable (Not a gzipped file (b'no'))"),
    # conversations
    ('no turn of the assistant', 'jsonl', chats([user('x')]), [', line 2: the assistant has no turn in the conversation']),
    ('no turns', 'jsonl', chats([], dict(messages='x')),
     [', line 2: `messages` must be a list of turns, got []', ", line 3: `messages` must be a list of turns, got 'x'"]),
    ('an empty turn', 'jsonl', chats([user('x'),assistant('')], [user(None),assistant('y')]),
     [', line 2: `content of turn 1` is empty', ', line 3: `content of turn 0` must be text, got None']),
    ('turns out of order', 'jsonl', chats([assistant('y')], [user('x'),user('x')], [user('x'),dict(role='tool', content='y')]),
     [", line 2: turn 0 must be the user's, who begins, got 'assistant'", ", line 3: turn 1 must be the assistant's, got 'user'",
      ", line 4: turn 1 must be of the system, the user or the assistant, got 'tool'"]),
    # published tasks
    ('scores that are all zero', 'json', bb(dict(input='x', target_scores={'y': 0, 'z': 0})),
     [", item 1: `target_scores` must be higher for some choices than for others, got {'y': 0, 'z': 0}"]),
    ('scores that are none', 'json', bb(dict(input='x', target_scores={'y': '1', 'z': 0}), dict(input='x', target_scores={'y': 1})),
     [f", item {i}: `target_scores` must be an object with a score for each of at least two choices, got {{{o}}}"
      for i,o in ((1,"'y': '1', 'z': 0"),(2,"'y': 1"))]),
    ('no target', 'json', bb(dict(input='x'), dict(input=3, target='y'), dict(input='x', target=''), dict(input='x', target=[])),
     [', item 1: `target` is missing, and there are no `target_scores`', ', item 2: `input` must be text, got 3',
      ', item 3: `output` is empty', ', item 4: `output` is an empty list']),
    ('an instance without an output', 'json', ni(dict(id='x', input='x', output=[]), dict(id='y', input='x')),
     [', item 1: `output` is an empty list', ', item 2: `output` is missing']),
    ('a definition that is none', 'json', ni(what=3),
     dict(error=', item 0: `instruction` must be text, got [3]',
          drop=': none of its 3 examples can be used; the first: {p}, item 0: `instruction` must be text, got [3]')),
    # what the tokens say, and clients
    ('an answer longer than the limit', 'jsonl', jl(dict(X, output='y'*70)),
     [', line 2: the answer has 71 tokens, which leaves no room for a question in `max_length` 64']),
    ('the end-of-sequence token in an answer', 'jsonl', jl(dict(X, output='y<|end|>z')),
     [", line 2: `output` contains the end-of-sequence token '<|end|>', and what stands after it would not be learned"]),
    ('labels that are all masked', 'jsonl', jl(dict(X, output='#hidden')),
     [", line 2: nothing of `output` would be learned: the tokenizer or its chat template leaves no token of '#hidden'"]),
    ('a client with too little', 'jsonl', b'\n'.join(map(js, [GOOD[0], dict(GOOD[0], output='again')])),
     dict(error='client bad: expected at least 2 different questions (`min_examples`), got 1', left_out='bad: 1 different questions')),
]

class Hides:
    "A tokenizer that makes nothing of text behind a #, as those do that strip what they don't know."
    def __init__(self): self.tok = get_tokenizer(FedConfig(model='tiny'))
    def __getattr__(self, k): return getattr(self.tok, k)
    def __call__(self, texts, **kw): return self.tok([t.split('#')[0] + '<|end|>'*('<|end|>' in t) for t in texts], **kw)

@pytest.fixture(scope='module')
def prompter(): return Prompter(Hides(), 'Q: {instruction}{input}\nA:', max_length=64)

@pytest.mark.parametrize('on_bad', ['error','drop'])
@pytest.mark.parametrize('row', bad_data, ids=lambda r: f'{r[0]}-{r[1]}'.replace(' ', '_'))
def test_bad_data(tmp_path, prompter, row, on_bad):
    """Beside a client whose file is in order: an error names the place, the field, what was expected and what came, and leaves nothing
    behind; or the bad ones are counted, each with its place, and the good ones stay as they are."""
    name,ext,content,wrong,*more = row
    put(tmp_path/'d'/'good.jsonl', lines(*GOOD))
    p = tmp_path/'d'/f'bad.{ext}'
    p.write_bytes(b'no') if content is None else put(p, content)
    def whole(s): return (s if s.startswith('client') else f'{p}{s}').replace('{p}', str(p))
    def use():
        data = get_client_data(FedConfig(data=str(tmp_path/'d'), partition='file', on_bad=on_bad))
        facts = token_facts(data, prompter, on_bad)
        kept = {n: [e for s in ('train','test') for e in encode_all(prompter, d[s], n, 'drop')[0]] for n,d in zip(data.names, data)}
        return (kept, [*(f'{a}: {b}' for a,b in [*data.where, *data.left_out]), *facts['why']],
                data.dropped + len(data.left_out) + facts['dropped'])
    if isinstance(wrong, str): says = wrong
    elif isinstance(wrong, dict): says = wrong.get(on_bad)
    else: says = wrong[0] if wrong and on_bad == 'error' else None
    if says:
        with pytest.raises(DataError) as e: use()
        start,dots,_ = whole(says).partition('...')
        assert (str(e.value)[:len(start)] if dots else str(e.value)) == start
        if 'token' not in says and 'client' not in says: assert not list((tmp_path/'cache').rglob('*/*'))
        return
    kept,named,count = use()
    expected = [whole(o) for o in wrong] if isinstance(wrong, list) else [wrong['left_out']] if wrong else []
    assert sorted(named) == sorted(expected) and count == len(expected)
    def plain(exs): return sorted((e['instruction'], e.get('input', ''), e['output']) for e in exs)
    assert plain(kept['good']) == plain(GOOD)
    if wrong and not isinstance(wrong, list):
        assert list(kept) == ['good']
        return
    good = GOOD
    if b'Definition' in content: good = [dict(instruction='d', input=e['instruction'], output=e['output']) for e in GOOD]
    assert plain(kept['bad']) == plain([*good, *(more[0] if more else [])])

# wrong commands

Q = [dict(instruction=f'{i} plus 1?', output=str(i+1), task='add', hospital=f'h{i%3}') for i in range(20)]
files = {'two/a.jsonl': lines(*Q), 'two/b.jsonl': lines(*Q), 'one.jsonl': lines(*Q),
         'long/a.jsonl': lines(*Q, dict(instruction='x', output='y'*600)), 'long/b.jsonl': lines(*Q), 'small/a.jsonl': lines(Q[0]),
         'small/b.jsonl': lines(*Q), 'doc/a.docx': 'x', 'unknown/a.jsonl': lines(dict(foo='x', bar='y')),
         'ends/a.jsonl': lines(*Q, dict(instruction='x', output='a<|end|>b')), 'ends/b.jsonl': lines(*Q),
         'splits/dataset_dict.json': '{"a": 1}', 'lines.yaml': 'data: two\ncolumns: instruction\n', 'typo.yaml': 'dta: two\n',
         'nothing/.keep': ''}
wrong = [
    ('nowhere',
     "`data`: expected 'reasoning-gym', a file or folder that is there, or a Hugging Face dataset that can be loaded (seen from /"),
    ('tow', "(did you mean 'two'?), got \"tow (ConnectionError"),
    ('away/x.jsonl', "that can be loaded (seen from /"),
    ('away/x.jsonl', "), got 'away/x.jsonl'"),
    ('oen.jsonl', "(did you mean 'one.jsonl'?), got 'oen.jsonl'"),
    ('/no/such/folder', "that can be loaded, got '/no/such/folder'"),
    ('nothing', "`data`: expected at least one file (.jsonl, "),
    ('two/*.csv', "`data`: expected at least one file (.jsonl, "),
    ("''", "`data`: expected 'reasoning-gym', a file, a folder, a pattern or the name of a Hugging Face dataset, got ''"),
    ('doc',
     "`data`: expected files named .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow and no others, or a pattern such as "
     "'doc/*.jsonl', got 'doc/a.docx'"),
    ('long', 'long/a.jsonl, line 21: the answer has 601 tokens, which leaves no room for a question in `max_length` 512'),
    ('ends', "ends/a.jsonl, line 21: `output` contains the end-of-sequence token '<|end|>'"),
    ('unknown', "unknown/a.jsonl, line 1: no known format in the columns 'foo', 'bar'; say which is which"),
    ('small', 'client a: expected at least 2 different questions (`min_examples`), got 1'),
    ('splits', 'splits/dataset_dict.json: expected {"splits": [...]}, as `save_to_disk` writes it'),
    ('one.jsonl', '`partition`: expected a way to make clients out of one file'),
    ('two --partition tasks', "(did you mean 'task'?), got 'tasks'"),
    ('two --partition column', '`partition_args`: expected {column: NAME}, the column whose values are the clients, got {}'),
    ("two --partition column --partition_args '{column: hospitl}'",
     "two/a.jsonl, line 1: no column 'hospitl' (did you mean 'hospital'?) among the columns 'instruction', 'output', 'task', 'hospital'"),
    ('two --partition column --partition_args hospital', "`partition_args`: expected a mapping, got 'hospital'"),
    ('two --partition iid', "`num_clients`: expected a number, with partition 'iid', got None"),
    ('two --partition iid --num_clients 99', '`num_clients`: expected a whole number from 1 to 40 (the number of examples), got 99'),
    ('two --num_clients 5', '`num_clients`: expected 2 (one a file), or nothing, got 5'),
    ("two --partition dirichlet --num_clients 2 --partition_args '{alpha: big}'",
     "`partition_args: alpha`: expected a number above 0, got 'big'"),
    ("two --partition shards --num_clients 2 --partition_args '{shards_per_client: 1.5}'",
     '`partition_args: shards_per_client`: expected a whole number from 1 to 20'),
    ('two --test_share 1', '`test_share`: expected at most 0.9, got 1'),
    ('two --test_share .9 --valid_share .5', '`valid_share`: expected a share from 0, less than 0.1'),
    ('two --min_examples 50', 'client a: expected at least 50 different questions (`min_examples`), got 20; 2 clients have too few'),
    ('two --unseen_clients 2', '`unseen_clients`: expected names, or a whole number from 0 to 1: somebody must train, got 2'),
    ('two --unseen_clients [c]', "`unseen_clients`: expected one of a, b, got 'c'"),
    ('two --unseen_tasks [ad]', "`unseen_tasks`: expected tasks of the data: add (did you mean 'add'?), got 'ad'"),
    ('two --unseen_tasks [add]', '`unseen_tasks`: expected not all tasks of the data: somebody must train'),
    ('two --data_format alpac', "(did you mean 'alpaca'?), got 'alpac'"),
    ('two --data_format dolly',
     "not of the format 'dolly', which has 'instruction', 'context', 'response', in the columns 'instruction', 'output', 'task', "
     "'hospital'"),
    ("two --data_args '{splt: x}'",
     "`data_args`: expected keys among 'delimiter', 'turns', 'split', 'labels' (did you mean 'split'?), got 'splt'"),
    ("two --data_args '{split: x}'", "`data_args: split`: expected none: two isn't a folder with splits"),
    ("two --columns '{instrction: q}'", "(did you mean 'instruction'?), got 'instrction'"),
    ("two --columns '{instruction: q}'", "two/a.jsonl, line 1: no column 'q', which `columns` names, among the columns"),
    ('two --columns q', "`columns`: expected a mapping, got 'q'"),
    ('two --template hello', "`template`: expected one of 'auto'"),
    ('two --system_prompt x --template alpaca', "`system_prompt`: expected nothing with the template 'alpaca'"),
    ('two --on_bad ignore', "`on_bad`: expected one of 'error', 'drop', got 'ignore'"),
    ('reasoning-gym --tasks {}', '`tasks`: expected at least one reasoning-gym task, got {}'),
    ("reasoning-gym --tasks '{gdc: {}}'", '`tasks: gdc`: expected a task and settings that reasoning-gym knows'),
    ("reasoning-gym --tasks '{gcd: {}}' --columns '{instruction: q}'", '`columns`: expected none: what reasoning-gym makes has no columns'),
    ('two typo.yaml', "`dta`: expected a known field (did you mean 'data'?), got 'two'"),
    ('two lines.yaml', "`columns`: expected a mapping, got 'instruction'"),
    ('two --daat x', "`--daat`: expected a known option (did you mean '--data'?)"),
]
shown = [('two --clients c', "`clients`: expected names or numbers of clients, 0 to 1, got 'c'"),
         ("two --clients ''", "`clients`: expected how many, or names or numbers separated by commas, got ''"),
         ('two --examples -1', '`examples`: expected at least 0, got -1'),
         ('two --plot who.doc', "`plot`: expected a name that ends in .png, .pdf or .svg, got 'who.doc'"),
         ('two --plot no/who.png', "`plot`: expected a file in a folder that exists, got 'no/who.png'"),
         ("two --plot ''", "`plot`: expected a name that ends in .png, .pdf or .svg, got ''")]

cases = [*(('run', *o) for o in wrong), *(('show-data', *o) for o in [*wrong[::4], *shown])]
@pytest.mark.parametrize('command,argv,says', cases, ids=lambda o: o[:40])
def test_wrong_commands(tmp_path, monkeypatch, capsys, command, argv, says):
    """One line that names the setting or the file, what was expected and what came; exit code 2; and neither a run's folder nor half of
    anything in the cache."""
    for name,text in files.items(): put(tmp_path/name, text)
    monkeypatch.chdir(tmp_path)
    before = {o.name for o in tmp_path.iterdir()}
    assert main([command, '--data', *shlex.split(argv), '--model', 'tiny', '--output_dir', 'out']) == 2
    out,err = capsys.readouterr()
    assert says in err.replace('\n', ' ') and len(err.splitlines()) == 1 and err.startswith('fedai: ')
    assert {o.name for o in tmp_path.iterdir()} - {'cache'} == before
    assert not [p for p in (tmp_path/'cache').rglob('*') if p.suffix == '.tmp' or p.is_dir() and not any(p.iterdir()) and p.name != 'data']
