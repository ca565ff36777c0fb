#!/usr/bin/env python
"""Say whether the library still gives the same results, to the bit: small runs of the tiny model, and a checksum of every file they leave.

    python tools/bits.py                 run all, and compare with tools/bits.json
    python tools/bits.py --write         run all, and write tools/bits.json
    python tools/bits.py --against REV   compare with the library of that commit, run on this machine: for any processor
    python tools/bits.py -k WORD         only runs whose names contain WORD
    python tools/bits.py --list          the names, and what no run covers

Exit codes: 0 the same; 1 something differs; 2 bits.json was made with another processor or other packages, so nothing can be said.
Checked are adapters and whatever else is in safetensors, histories, scorecards, answers, graphs, names, mixing matrices, client lists,
tokens, and JSON of the command line. Times are not, nor are wording, config.yaml and state.json, whose form may change.
Only what `from fedai import X` and the command line give is used, so that the script runs on both sides of a move of modules.
"""
import os
os.environ.update({k: '1' for k in ('HF_HUB_OFFLINE', 'OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS')}, MPLBACKEND='agg')
import argparse, contextlib, csv, gzip, hashlib, importlib.metadata, io, json, shlex, subprocess, sys, tempfile, time, warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = Path(os.environ.get('BITS_LIBRARY', ROOT)).resolve()   # whose `fedai` is run
BITS = Path(__file__).resolve().with_suffix('.json')
sys.path.insert(0, str(LIBRARY))

import numpy as np, torch
import fedai as F
from fedai import BaseClient, BaseServer, Callback, FedConfig, get_client_data, get_server

# ---------------------------------------------------------------- examples

SIZES = 12, 9, 7, 4   # training examples of each client; more clients begin again

def sums(k, n, start=0):
    "Examples that no other client has."
    return [dict(instruction=f'{i} + {100*k} =', output=str(i + 100*k), task=f'plus{k%2}') for i in range(start, start+n)]

def texts(K):
    "A language model's clients, of uneven size."
    return [{'train': sums(k, SIZES[k%4]), 'test': sums(k, 2, start=50)} for k in range(K)]

def lengths(K):
    "Clients whose examples are from short to longer than a small `max_length`."
    def say(k, i): return dict(instruction=f'word{k} '*(1 + 3*i % 11) + '?', input='of it'*(i % 2), output='yes '*(1 + i % 3))
    return [{'train': [say(k, i) for i in range(8)], 'test': [say(k, i) for i in range(8, 11)]} for k in range(K)]

def choices(K):
    "Clients with questions of several choices, some with several right answers."
    def pick(k, i):
        right = 'abc'[i%3]
        return dict(instruction=f'Which of {i}, {k}?', output=right, choices=['a', 'b', 'c', 'dd'], references=[right, 'A'][:1 + i%2])
    return [{'train': [pick(k, i) for i in range(6)], 'test': [pick(k, i) for i in range(6, 10)]} for k in range(K)]

def letters(K):
    "Clients that learn in a few steps to answer with one letter, so that scores aren't 0."
    def says(i, letter): return dict(instruction=f'{i}', output=letter)
    return [{'train': [says(i, 'xy'[k%2]) for i in range(6)], 'test': [says(i, 'xy'[i%2]) for i in range(6, 9)]} for k in range(K)]

def points(K):
    "A plain module's clients: six numbers, and which of three classes."
    draw = torch.Generator().manual_seed(0)
    def pairs(n): return [(x, int(x[:3].argmax())) for x in torch.randn(n, 6, generator=draw)]
    return [{'train': pairs(2*SIZES[k%4]), 'test': pairs(5)} for k in range(K)]

def points_of(K, dtype): return [{s: [(x.to(dtype), y) for x, y in v] for s, v in d.items()} for d in points(K)]

# ---------------------------------------------------------------- files

def lines(records): return ''.join(json.dumps(r) + '\n' for r in records)

def table(records, sep=','):
    "Records as a text with a header and cells in quotes where they need them."
    out = io.StringIO(newline='')
    writer = csv.DictWriter(out, list(records[0]), delimiter=sep)
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()

def put(path, content):
    "Write a text, or a value as JSON, into a file of the current folder."
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = (content if isinstance(content, str) else json.dumps(content)).encode()
    path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == '.gz' else raw)

def rows(n, k=0, **more):
    "Examples with two tasks, and a further column."
    return [dict(instruction=f'{i} + {k} =', output=str(i+k), task=['even', 'odd'][i%2], kind='abc'[i%3], **more) for i in range(n)]

def turns(i, system='system', user='user', assistant='assistant', role='role', content='content'):
    "A conversation, with names as one likes."
    said = (system, 'Be kind'), (user, 'Hi'), (assistant, 'Hello'), (user, 'And'), (assistant, 'Bye')
    return [{role: r, content: f'{t} {i}'} for r, t in said]

HALFWAY = """
import numpy as np
from fedai import BaseServer
class Server_halfway(BaseServer, name='halfway'):
    one_model = False
    def mixing_matrix(self, ids, comm_round): return .5*np.eye(len(ids)) + .5*super().mixing_matrix(ids, comm_round)
"""

def write_files():
    "Data in every form, graphs, who is there, and an algorithm, in the current folder."
    write_data()
    write_published()
    write_tables()
    A = np.triu(np.random.default_rng(0).uniform(size=(4, 4)).round(3), 1)
    np.save('graph.npy', A + A.T)
    put('graph.csv', '\n'.join(','.join(map(str, r)) for r in A + A.T))
    put('graph.edges', ''.join(f'{i} {j} {A[i, j]}\n' for i, j in zip(*np.nonzero(A))))
    put('there.csv', '1,0,1,1\n0,1,1,0\n1,1,1,1\n')
    put('mine.py', HALFWAY)

def write_data():
    "A folder with a file a client, and single files: with clients, with other columns, with faults, with long texts."
    put('wards/ward0.jsonl', lines(rows(14)))
    put('wards/ward1.csv', table(rows(11, 1)))
    put('wards/ward2.json.gz', rows(17, 2))
    put('one.jsonl', lines(dict(o, client=f'c{i//3%4}') for i, o in enumerate(rows(40))))
    put('films.csv', table([dict(instruction=f'film {i}', output=i%3) for i in range(12)]))
    put('other.tsv', table([dict(question=f'q {i}', answer=f'a, {i}', hospital=f'h{i%3}') for i in range(15)], '\t'))
    faults = dict(instruction='x', client='c0'), dict(instruction='y', output='', client='c1'), *rows(1, 3, client='c2')
    put('bad.jsonl', lines([*rows(20, client='c0'), *faults]) + 'not JSON\n')
    def longer(i): return dict(instruction='a long way '*(1 + i%7), input=f'to go {i}', output=f'yes {i}', client=f'c{i%3}')
    put('long.jsonl', lines(map(longer, range(24))))

def write_published():
    "The forms in which data sets are published."
    put('alpaca.json', [dict(instruction=f'Say {i}.', input='loud'*(i%2), output=f'{i}!') for i in range(12)])
    put('dolly.jsonl', lines(dict(instruction=f'When {i}?', context=f'{i}.'*(i%2), response=f'{i}', category='ab'[i%2]) for i in range(12)))
    put('chat.jsonl', lines(dict(messages=turns(i), client=f'c{i%2}') for i in range(10)))
    put('sharegpt.json', [dict(conversations=turns(i, user='human', assistant='gpt', role='from', content='value')) for i in range(10)])
    def items(t): return [dict(input=f'{i} 4', output=[f'{i}{t}', f'{i}']) for i in range(8)]
    for t in 'add', 'sub': put(f'ni/task_{t}.json', dict(Definition=[f'{t} them.'], Instances=items(t)))
    asked = [dict(input=f'After {i}?', target_scores={'Monday': i%2, 'Friday': 1 - i%2, 'May': 0}) for i in range(12)]
    metric = 'multiple_choice_grade'
    put('big/task.json', dict(name='dates', description='Days', keywords=[], metrics=[metric], preferred_score=metric, examples=asked))

def write_tables():
    "The same rows as parquet and as arrow."
    import pyarrow as pa, pyarrow.parquet as pq
    t = pa.Table.from_pylist(rows(30, 5))
    pq.write_table(t, 'some.parquet')
    with pa.ipc.new_file('some.arrow', t.schema) as w: w.write_table(t)

# ---------------------------------------------------------------- models, clients and algorithms of one's own

def net(norm=False, dtype=torch.float32):
    "A plain module, with BatchNorm's buffers or without."
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8) if norm else torch.nn.Identity(), torch.nn.ReLU(), torch.nn.Linear(8, 3)
    return torch.nn.Sequential(*layers).to(dtype)

def gpt2(cfg):
    "Another architecture: positions are learned, and layers have their weights transposed."
    from transformers import GPT2Config, GPT2LMHeadModel
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=261, n_positions=128, n_embd=32, n_layer=2, n_head=2, eos_token_id=1, bos_token_id=None))

def peft(cfg, **lora):
    "A PEFT model."
    from peft import LoraConfig, get_peft_model
    torch.manual_seed(0)
    return get_peft_model(F.get_base_model(cfg), LoraConfig(task_type='CAUSAL_LM', **{'r': 3, 'target_modules': ['v_proj'], **lora}))

class Client_small(BaseClient):
    "Held near zero."
    def penalty(self, sent): return lambda w: .1*sum(t.square().sum() for t in w.values())

class Client_twice(BaseClient):
    "Trains twice in a round, and so one by one."
    def train(self, comm_round): return super().train(comm_round) and super().train(100 + comm_round)

class Server_bits(BaseServer, name='bits'):
    "A matrix that is not symmetric."
    one_model = False
    def mixing_matrix(self, ids, comm_round): return (np.eye(len(ids)) + np.roll(np.eye(len(ids)), 1, 0)*(1 + comm_round))/(2 + comm_round)

# ---------------------------------------------------------------- what is done with a config; each may return values that are checked too

class Mixing(Callback):
    "Keeps each round's clients and matrix."
    def __init__(self): self.rounds = []
    def after_mix(self, server, t, M): self.rounds.append([t, np.asarray(M)])

class Stop(Callback):
    "Ends a run in the middle of a round."
    def __init__(self, round, event): self.round, self.event = round, event
    def at(self, event, t):
        if (self.round, self.event) == (t, event): raise KeyboardInterrupt
    def before_round(self, server, t, ids): self.at('before_round', t)
    def after_client(self, server, t, id, metrics): self.at('after_client', t)
    def after_mix(self, server, t, M): self.at('after_mix', t)

def whole(cfg, data=texts, callbacks=(), **kwargs):
    "Train and test; where an engine is named, beside the baselines, which take as long again."
    seen = Mixing()
    server = get_server(cfg, data(cfg.num_clients) if callable(data) else data, callbacks=[seen, *callbacks], **kwargs)
    server.fit()
    server.test(baselines=cfg.engine != 'auto')
    there = {i for r in server.history for i in r['selected']}   # others are in it in some versions, and not in others
    latest = {i: server.latest_model_iter[i] for i in sorted(there)}
    return dict(mixing=seen.rounds, latest=latest, prints=[c.fingerprint for c in server.client_list])

def held(cfg, data=texts):
    "With examples of the server's own."
    return whole(cfg, data, holdout_ds=data(cfg.num_clients + 1)[-1]['test'])

def plain(cfg, norm=False, dtype=torch.float32, **kwargs):
    "A plain module."
    return whole(cfg, points_of(cfg.num_clients, dtype), model=net(norm, dtype), criterion=torch.nn.CrossEntropyLoss(), **kwargs)

def plain_held(cfg):
    "A plain module whose criterion is its attribute, with a float64 state and examples of the server's own."
    model, data = net(True, torch.float64), points_of(cfg.num_clients, torch.float64)
    model.criterion = torch.nn.functional.cross_entropy
    return whole(cfg, data, model=model, holdout_ds=data[0]['test'])

def given(cfg, model, **kwargs):
    "A model that is handed over."
    return whole(cfg, model=model(cfg, **kwargs))

def stopped(cfg, run=whole, **kwargs):
    "A run that is stopped in each round, somewhere else each time, and goes on."
    for t, event in zip(range(cfg.rounds), ['after_client', 'after_mix', 'before_round']*cfg.rounds):
        try: run(cfg, callbacks=[Stop(t, event)], **kwargs)
        except KeyboardInterrupt: continue
        raise AssertionError(f'round {t} was not stopped {event}')
    return run(cfg, **kwargs)

def lengthened(cfg):
    "A run that is made longer, with another engine in each round."
    for t, engine in zip(range(cfg.rounds), ['sequential', 'batched']*cfg.rounds):
        get_server(cfg.replace(rounds=t+1, engine=engine), texts(cfg.num_clients), callbacks=[]).fit()
    return whole(cfg)

def beside(cfg):
    "Tested beside another run."
    whole(cfg.replace(coupling=0., output_dir='other'))
    return whole(cfg.replace(versus='other'))

def looked_at(cfg):
    "Each client's adapter on each client's data, and newcomers from each start."
    server = get_server(cfg, texts(cfg.num_clients), callbacks=[])
    server.fit()
    new = {'known': {'train': sums(7, 5), 'test': sums(7, 2, 50)}, 'other': letters(1)[0]}
    crossed = dict(rouge=server.cross_evaluation([0, 2], 'rougeL'), loss=server.cross_evaluation())
    return dict(crossed, newcomers=server.test_newcomers(new, rounds=2))

def exported(cfg):
    "An adapter, a merged model and all adapters as folders."
    whole(cfg)
    data = dict(data=texts(cfg.num_clients))
    F.export_adapter('run', 1, 'out/one', **data)
    F.export_adapter('run', 1, 'out/merged', merge=True, **data)
    if not F.get_class(cfg.name).needs_data: F.export_all('run', 'out/all')
    return chatted(F.Chat('run', 1, 12, **data))

def chatted(chat):
    "The tokens that a client's model says, and the base model."
    own = list(chat.tokens('2 + 2 ='))
    chat.use(None)
    return dict(own=own, base=list(chat.tokens('2 + 2 =')))

def everything(data):
    "A client list as plain values, without what is put in words."
    def values(d): return {s: [dict(e) for e in d[s]] for s in d}
    others = dict(holdout=[dict(e) for e in data.holdout or []], newcomers={n: values(d) for n, d in data.newcomers.items()})
    without = dict(dropped=[place for place, _ in data.where], left_out=[n for n, _ in data.left_out])
    facts = {k: v for k, v in data.facts().items() if k != 'how'}
    return dict(names=data.names, clients=[values(d) for d in data], facts=facts, near=data.near_duplicates(), **others, **without)

def clients(cfg):
    "What comes of data in files; read twice, the second time from what the first one kept."
    write_files()
    data = get_client_data(cfg)
    assert get_client_data(cfg) == data
    prompter = F.Prompter(F.get_tokenizer(cfg), cfg.template, cfg.system_prompt, cfg.max_length)
    tokens = [[[e.prompt, e.answer, e.cut] for e in F.encode_all(prompter, d[s], s, cfg.on_bad)[1]] for d in data for s in d]
    facts = {k: v for k, v in F.token_facts(data, prompter, cfg.on_bad).items() if k != 'why'}
    return dict(everything(data), tokens=tokens, token_facts=facts)

def from_files(cfg):
    "A run on data in files."
    write_files()
    data = get_client_data(cfg)
    said = whole(cfg, data)
    if data.newcomers: said['newcomers'] = get_server(cfg, data, callbacks=[]).test_newcomers()
    return said

def from_texts(cfg):
    "A run on examples in memory, whose settings name files."
    write_files()
    return whole(cfg)

UNCERTAIN = 'how', 'why', 'there', 'time', 'measured', 'memory', 'disk', 'on_disk', 'problems', 'fix'   # words, clocks, the machine

def certain(value):
    "A JSON value without what may differ."
    if isinstance(value, dict): return {k: certain(v) for k, v in value.items() if k not in UNCERTAIN}
    return [certain(v) for v in value] if isinstance(value, list) else value

def command(line):
    "The exit code of a command, and what it says in JSON."
    out = io.StringIO()
    from fedai.cli import main
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()): code = main(shlex.split(line))
    return [code, certain(json.loads(out.getvalue())) if '--json' in line and out.getvalue() else None]

def commands(cfg, *said):
    "Commands, one after another; the config is in mine.yaml."
    write_files()
    put('mine.yaml', F.dump_config(cfg))
    return {line: command(line) for line in said}

class Grid:
    "Flower's grid as a federation sees it: hands messages to sites in this process."
    def __init__(self, sites): self.sites, self.replies = sites, {}
    def get_node_ids(self): return list(self.sites)
    def push_messages(self, messages):
        new = []
        for m in messages:
            new.append(f'{len(self.replies)}')
            self.replies[new[-1]] = self.sites[m.metadata.dst_node_id](bytes(m.content['fedai']['message'].numpy()))
        return new
    def pull_messages(self, ids):
        from flwr.app import Array, ArrayRecord, RecordDict
        for k in ids:
            content = RecordDict({'fedai': ArrayRecord({'message': Array(np.frombuffer(self.replies[k], np.uint8))})})
            yield SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=k), has_error=lambda: False, content=content)

def federation(cfg, clip=None):
    "Sites on Flower, with only the network left out; each clips its update, or not."
    from flwr.supercore.task_identity import TaskIdentity
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    own, more = FedConfig(device='cpu', memory_gb=2.), dict(privacy=F.Privacy(clip)) if clip else {}
    def site(k, d): return F.Trainer(d, own, secret=bytes([k])*32, folder=f'site{k}', log=io.StringIO(), **more)
    grid = Grid({10+k: site(k, d) for k, d in enumerate(texts(cfg.num_clients))})
    there = [dict(name=f's{k}', node=10+k) for k in range(cfg.num_clients)]
    F.meet(grid, there, 0)
    server = F.central(cfg, there, grid, [])
    server.fit()
    server.test(baselines=True)

# ---------------------------------------------------------------- functions

def some_states():
    "LoRAs of five clients, two of them alike."
    draw = torch.Generator().manual_seed(1)
    def lora(): return {f'{l}.lora_{x}.weight': torch.randn(s, generator=draw) for l in 'qv' for x, s in (('A', (3, 8)), ('B', (6, 3)))}
    states = [lora() for _ in range(4)]
    return [*states, {n: t + .1 for n, t in states[0].items()}]

def graphs(cfg):
    "Graphs, and what is made of them."
    A, states, some = F.random_graph(7, 3), some_states(), np.random.default_rng(0).normal(size=(6, 3))
    S, M = F.lora_similarity(states), F.mira_matrix(A, .05)
    made = dict(random=A, full=F.complete_graph(5), ring=F.ring_graph(7, 2), erdos=F.erdos_renyi_graph(9, .4, 2), knn=F.knn_graph(some, 2))
    alike = dict(tasks=F.task_graph(list('abcab')), lora=S, states=F.state_similarity(states), norms=[F.lora_norm(s) for s in states])
    facts = dict(facts=F.graph_facts(A, .1), limit=F.step_limit(A), degree=F.max_degree(A))
    out = dict(made, **alike, **facts, parts=F.bipartition(F.cosines(F.inner_products(states))), mira=M, pull=F.effective_pull(M),
               average=F.average_matrix([3, 1, 0, 5]))
    for how in 'none', 'max_degree', 'row', 'symmetric': out[f'normalise-{how}'] = F.normalise_graph(A, how)
    for more in False, True: out[f'subgraph-{more}'] = F.subgraph(A, [5, 0, 2], more)
    for args in dict(top_k=2), dict(threshold=.1), dict(temperature=.3), dict(top_k=1, symmetrise='max'), dict(top_k=2, symmetrise='min'):
        out[f'similarity-{args}'] = F.similarity_graph(S, **args)
    return out

def selections(cfg):
    "Who takes part, for nine clients and seven rounds."
    there, losses = np.random.default_rng(0).random((7, 9)) < .6, [None, 1., 5., 2., 2., None, .1, 3., 4.]
    return dict(uniform=F.uniform_selection(9, .4, 7, 5), weighted=F.weighted_selection(range(1, 10), .4, 7, 5),
                robin=F.round_robin_selection(9, .4, 7, 5), near=F.neighbourhood_selection(F.random_graph(9, 1), .4, 7, 5),
                available=F.availability_selection(there, .4, 7, 5),
                choice=[F.power_of_choice(losses, .3, d, F.rng(5, 'selection', d)) for d in (3, 5, 9)])

def matrices(cfg):
    "Products cut to their rank, and the server's steps."
    draw, out = torch.Generator().manual_seed(2), {}
    Bs, As = [torch.randn(6, 3, generator=draw) for _ in range(4)], [torch.randn(3, 8, generator=draw) for _ in range(4)]
    for name, M in dict(mira=F.mira_matrix(F.complete_graph(4), .1), average=F.average_matrix([1, 2, 3, 4])).items():
        out[name] = [[B.tolist(), A.tolist()] for B, A in F.product_mix(M, Bs, As)]
        out[f'{name}-ranks'] = [[B.tolist(), A.tolist()] for B, A in F.product_mix(M, Bs, As, [1, 3, 2, 3])]
    for kind in 'momentum', 'adagrad', 'yogi', 'adam':
        moments = None
        for t in range(3): steps, moments = F.server_step(kind, {'w': Bs[t]}, moments)
        out[kind] = [steps['w'].tolist(), {n: v.tolist() for n, v in moments.items()}]
    return out

def scores(cfg):
    "Scores of answers, and statistics over clients."
    said = ['the cat sat', 'A dog, a log', '', '42', 'Grüße aus Köln', 'one two three four five six']
    right = ['the cat sat', 'the dog and a log', 'nothing', ['41', '42'], 'Grüße aus Bonn', 'one two three four six five']
    draw = np.random.default_rng(0)
    own, other = ({str(i): dict(task='ab'[i%2], loss=float(draw.random()), bleu=float(draw.random())) for i in range(7)} for _ in range(2))
    return dict(text=F.text_scores(said, right), each=[F.text_scores([a], [b]) for a, b in zip(said, right)], summary=F.summarise(own),
                gains=F.gains(own, other), bootstrap=F.paired_bootstrap(draw.normal(size=20)))

def draws(cfg):
    "Keyed draws, the default config, and the algorithms' settings."
    return dict(seeds=[F.key_seed(3, 'a', i) for i in range(5)], draws=F.rng(3, 'b', 1).random(9), config=F.dump_config(FedConfig()),
                algorithms={a['name']: {k: v[0] for k, v in a['settings'].items()} for a in F.list_algorithms()})

def partitions(cfg):
    "Examples dealt to clients."
    labels, hashes = [f'l{i*i%5}' for i in range(120)], np.random.default_rng(0).integers(2**63, size=200).astype(np.uint64)
    out = {k: F.make_partition(k, 4, 7, 120, None)[0] for k in ('iid', 'quantity')}
    for k, args in dict(dirichlet={'alpha': .3}, shards={'shards_per_client': 2}, pathological={}).items():
        out[k] = F.make_partition(k, 4, 7, 120, labels, **args)[0]
    return dict(out, split=F.split(hashes, np.arange(200), .2, .1, 3), holdout=F.holdout(hashes, .1, 3))

# ---------------------------------------------------------------- the runs

BASE = dict(model='tiny', device='cpu', num_clients=4, rounds=2, local_step=2, batch_size=3, lr=.02, r=4, max_new_tokens=3, keep_rounds=9,
            memory_gb=2., output_dir='run')
ENGINES = 'batched', 'sequential'
RANKS = [1, 4, 2, 3]
GYM = {'gcd': dict(min_value=2, max_value=12), 'chain_sum': {}}

@dataclass
class Case:
    "A run: its name, the settings that differ from `BASE`, and what is done with them."
    name: str
    settings: dict
    how: object = whole
    args: dict = field(default_factory=dict)   # of `how`; or a list

    def run(self):
        "Leave files in the current folder; what is returned is checked, too."
        cfg = FedConfig(**{**BASE, **self.settings})
        return self.how(cfg, *self.args) if isinstance(self.args, list) else self.how(cfg, **self.args)

CASES = []
def case(label, how=whole, args={}, /, **settings): CASES.append(Case(label, settings, how, args))   # noqa: B006
def both(label, how=whole, args={}, /, **settings):   # noqa: B006
    "A run with each engine."
    for e in ENGINES: case(f'{label}-{e}', how, args, engine=e, **settings)

# algorithms
both('fedavg', name='fedavg', m=.75)
both('local', name='local')
both('fedavg_ft', name='fedavg_ft', m=.5)
both('fedprox', name='fedprox', algorithm_args={'mu': .3}, m=.75)
both('ditto', name='ditto', algorithm_args={'lam': .3}, m=.75)
both('fedu', name='fedu', optimizer='SGD', lr=.5, lambda_=.1)
both('ffa', name='ffa', m=.75)
both('fedsa', name='fedsa', m=.75)
both('rolora', name='rolora', rounds=3)
both('flora', name='flora', m=.75)
both('fedex', name='fedex', m=.75)
both('ifca', name='ifca', algorithm_args={'clusters': 2}, rounds=3, m=.75)
both('cfl', name='cfl', algorithm_args={'eps': .9}, rounds=3)
both('hetlora', name='hetlora', ranks=RANKS, m=.75)
both('mira', name='mira', m=.75)
both('own', name='bits', rounds=3)
case('own-imported', from_texts, name='halfway', imports=['mine.py'])
both('own-client', whole, {'client_class': Client_small})
case('own-train', whole, {'client_class': Client_twice})

# graphs and steps of mira
case('mira-tasks', graph='tasks')
case('mira-complete', graph='complete', coupling=.9)
case('mira-ring', graph='ring', num_clients=6, graph_args={'neighbours': 2})
case('mira-erdos_renyi', graph='erdos_renyi', graph_args={'p': .6})
for ext in 'npy', 'csv', 'edges': case(f'mira-{ext}', from_texts, graph=f'graph.{ext}')
case('mira-array', whole, {'graph': np.arange(16).reshape(4, 4) % 3 * (np.arange(16).reshape(4, 4).T % 3) * (1 - np.eye(4))})
case('mira-alk_connection', whole, {'alk_connection': np.ones((4, 4)) - np.eye(4)})
case('mira-lambda', lambda_=3., lr_schedule='cosine', rounds=4)
case('mira-coupling-0', coupling=0.)
case('mira-max_degree', normalise='max_degree')
case('mira-row', normalise='row', m=.75)
case('mira-symmetric', normalise='symmetric')
case('mira-renormalize', renormalize=True, normalise='symmetric', m=.5, rounds=3)
case('mira-learned-states', graph='learned', m=.75, rounds=3)
case('mira-learned-top_k', graph='learned', graph_args={'top_k': 1, 'every': 2}, rounds=3)
case('mira-learned-threshold', graph='learned', graph_args={'threshold': .1, 'symmetrise': 'max'})
case('mira-learned-updates', graph='learned', graph_args={'measure': 'updates', 'temperature': .5}, m=.75, rounds=3)
case('mira-learned-data', graph='learned', graph_args={'measure': 'data', 'symmetrise': 'max'})
case('mira-learned-plain', plain, graph='learned', normalise='row')
case('mira-many', plain, graph='ring', num_clients=40, m=.9, local_step=1)

# who takes part
case('selection-uniform', selection='uniform', m=.5, rounds=3, seed=3)
case('selection-weighted', selection='weighted', m=.5, rounds=3)
case('selection-round_robin', selection='round_robin', m=.5, rounds=3, name='fedavg')
case('selection-neighbourhood', selection='neighbourhood', m=.5, rounds=3)
case('selection-availability', from_texts, selection='availability', selection_args={'available': 'there.csv'}, m=.5, rounds=3)
case('selection-power_of_choice', selection='power_of_choice', m=.5, rounds=3)
case('selection-power_of_choice-d', selection='power_of_choice', selection_args={'d': 3}, m=.5, rounds=3, name='fedsa')

# the server's step
for kind in 'momentum', 'adagrad', 'yogi', 'adam':
    case(f'server-{kind}-fedavg', name='fedavg', server_optimizer=kind, m=.75, rounds=3)
    case(f'server-{kind}-mira', server_optimizer=kind, server_lr=.05, server_optimizer_args={'beta1': .5}, m=.75, rounds=3)
for name in 'fedsa', 'rolora', 'ditto', 'fedavg_ft', 'ifca', 'cfl', 'local':
    case(f'server-{name}', name=name, server_optimizer='momentum', rounds=3)
case('server-ranks', name='fedavg', server_optimizer='adam', server_optimizer_args={'beta2': .9, 'tau': .01}, ranks=RANKS, m=.75, rounds=3)
case('server-plain', plain, {'norm': True}, name='fedavg', server_optimizer='yogi', buffers='mean')

# products and ranks
case('product-mira', space='product', m=.75)
for name in 'fedavg', 'local', 'ditto', 'fedavg_ft', 'ifca', 'hetlora':
    case(f'product-{name}', name=name, space='product')
both('ranks-mira', ranks=RANKS)
for name in 'fedavg', 'local', 'ditto', 'fedavg_ft', 'fedsa', 'rolora', 'flora':
    case(f'ranks-{name}', name=name, ranks=RANKS, m=.75)
case('ranks-product', ranks=RANKS, space='product')
case('ranks-product-fedavg', ranks=RANKS, space='product', name='fedavg', m=.75)
case('ranks-learned', ranks=RANKS, graph='learned', optimizer_args={'weight_decay': .1}, lora_dropout=.1)

# plain modules
both('plain-fedavg', plain, name='fedavg', optimizer='SGD')
both('plain-mira', plain, m=.75)
both('plain-norm-own', plain, {'norm': True}, buffers='own')
both('plain-norm-mean', plain, {'norm': True}, buffers='mean', name='fedavg')
for name in 'local', 'fedavg_ft', 'fedprox', 'ditto', 'ifca': case(f'plain-{name}', plain, {'norm': True}, name=name, m=.75)
case('plain-cfl', plain, {'norm': True}, name='cfl')
case('plain-fedu', plain, name='fedu', optimizer='SGD', lr=.1)
case('plain-bfloat16', plain, {'dtype': torch.bfloat16})
case('plain-held', plain_held, eval_every=1)
case('plain-stopped', stopped, {'run': plain, 'norm': True}, m=.75)

# engines: batches, packing, memory
for n in 1, 2, 3: case(f'batch-of-{n}', num_clients=5, clients_per_batch=n)
both('lengths', whole, {'data': lengths})
both('lengths-passes', whole, {'data': lengths}, memory_gb=.003, clients_per_batch=4, eval_batch_size=2)
both('lengths-cut', whole, {'data': lengths}, max_length=48)
case('max_alive', max_alive=1, m=.75, rounds=3)
case('keep_rounds', keep_rounds=1, m=.5, rounds=4)
case('keep_trained', keep_trained=True, m=.75)
case('checkpointing', gradient_checkpointing=True)
case('offload', offload_activations=True)
both('bf16', mixed_precision='bf16')
case('precision-no', mixed_precision='no')
case('dtype-float32', dtype='float32')
both('dtype-bfloat16', dtype='bfloat16')
case('dtype-float16', dtype='float16')
case('seed', seed=7, lora_dropout=.1, resume=False, min_clients=2)

# layers that get a LoRA
both('dropout', lora_dropout=.3)
both('last', adapt_layers='last:1')
both('last-dropout', adapt_layers='last:1', lora_dropout=.3)
case('last-uncached', adapt_layers='last:1', cache_prefix=False)
case('last-disk', adapt_layers='last:1', prefix_memory_gb=0.)
case('last-full', adapt_layers='last:1', prefix_memory_gb=0., prefix_disk_gb=0.)
case('last-bfloat16', adapt_layers='last:1', prefix_dtype='bfloat16')
case('last-float16', adapt_layers='last:1', prefix_dtype='float16')
case('last-fedex', adapt_layers='last:1', name='fedex')
case('first', adapt_layers=[0])
both('all-linear', target_modules='all-linear', use_rslora=True)
both('mlp', target_modules=['gate_proj', 'down_proj', 'o_proj'], lora_alpha=4.)
case('lm_head', target_modules=['lm_head', 'q_proj'])
case('embeddings', target_modules=['embed_tokens', 'v_proj'])
case('add_tokens', add_tokens=['<sum>', ' = '])
case('given-transformers', given, {'model': F.get_base_model}, name='fedavg')
case('given-peft', given, {'model': peft, 'modules_to_save': ['norm']})
case('given-dora', given, {'model': peft, 'use_dora': True}, name='fedavg')
case('given-dora-mira', given, {'model': peft, 'use_dora': True, 'target_modules': ['q_proj', 'k_proj']})
for name in 'mira', 'fedex', 'flora':
    case(f'gpt2-{name}', given, {'model': gpt2}, name=name, target_modules=['c_attn', 'c_fc'], max_length=64)
case('gpt2-last', given, {'model': gpt2}, target_modules=['c_attn'], adapt_layers='last:1', max_length=64)

# local steps
OPTIMIZERS = dict(SGD={'momentum': .9}, Adam={}, RMSprop={}, Adagrad={}, AdamW={'weight_decay': .1, 'betas': [.8, .9]})
for kind, args in OPTIMIZERS.items():
    case(f'optimizer-{kind}', optimizer=kind, optimizer_args=args)
case('grad_clip', grad_clip=.01, optimizer='SGD', lr=1.)
case('grad_clip-none', grad_clip=None)
case('linear', lr_schedule='linear', rounds=4)
case('cosine', lr_schedule='cosine', rounds=4, name='fedavg')
case('many-steps', local_step=9, batch_size=5)

# tests
both('held', held, eval_every=1, m=.75)
case('held-fedavg', held, eval_every=2, rounds=3, name='fedavg')
case('held-fedex', held, eval_every=1, name='fedex')
case('held-ditto', held, eval_every=1, name='ditto')
both('choices', whole, {'data': choices})
case('letters', whole, {'data': letters}, local_step=12, lr=.05)
case('letters-fedavg', whole, {'data': letters}, local_step=12, lr=.05, name='fedavg')
case('long-answers', max_new_tokens=12, eval_batch_size=1)
case('versus', beside)
for name in 'mira', 'fedavg', 'ditto', 'ifca': case(f'looked-at-{name}', looked_at, name=name)

# stops
for name in 'mira', 'fedavg', 'ditto', 'fedex', 'ifca', 'fedsa':
    case(f'stopped-{name}', stopped, name=name, m=.75, clients_per_batch=2, eval_every=2, rounds=3)
case('stopped-cfl', stopped, name='cfl', algorithm_args={'eps': .9}, rounds=3)
case('stopped-learned', stopped, graph='learned', m=.75, selection='power_of_choice', keep_rounds=1)
case('stopped-server', stopped, server_optimizer='adam', m=.75, keep_rounds=1)
case('stopped-last', stopped, adapt_layers='last:1', lora_dropout=.2, engine='sequential', ranks=RANKS)
case('lengthened', lengthened, m=.75, rounds=3)

# folders for others
for name in 'mira', 'fedex', 'ditto', 'ifca': case(f'exported-{name}', exported, name=name)
case('exported-ranks', exported, ranks=RANKS)

# data
def data(label, how=clients, **settings): case(f'data-{label}', how, **{'num_clients': None, 'data': 'one.jsonl', **settings})
data('file', data='wards', partition='file')
data('auto', data='wards')
data('client')
data('task', partition='task')
data('column', partition='column', partition_args={'column': 'kind'})
data('shares', data='wards', valid_share=.2, holdout_share=.2, test_share=.3)
data('unseen-clients', partition='client', unseen_clients=1)
data('unseen-name', partition='client', unseen_clients=['c0'], seed=2)
data('unseen-tasks', unseen_tasks=['odd'])
for kind in 'iid', 'quantity', 'dirichlet': data(kind, partition=kind, num_clients=3)
data('dirichlet-by', partition='dirichlet', num_clients=3, partition_args={'alpha': .3, 'by': 'kind'})
data('shards', partition='shards', num_clients=2, partition_args={'shards_per_client': 1})
data('pathological', partition='pathological', num_clients=2)
for name in 'alpaca.json', 'dolly.jsonl', 'sharegpt.json', 'big/task.json', 'some.parquet', 'some.arrow':
    data(name.replace('/', '-'), data=name, partition='iid', num_clients=2)
data('ni', data='ni', partition='task')
data('chat', data='chat.jsonl')
data('chat-last', data='chat.jsonl', data_args={'turns': 'last'}, system_prompt=None, template='chat')
data('labels', data='films.csv', data_args={'labels': ['bad', 'so so', 'good']}, partition='iid', num_clients=2)
data('columns', data='other.tsv', columns={'instruction': 'question', 'output': 'answer', 'client': 'hospital'})
data('format', data='dolly.jsonl', data_format='dolly', columns={'client': 'category'}, min_examples=3)
data('bad', data='bad.jsonl', on_bad='drop')
data('cut', data='long.jsonl', max_length=64)
for label, t in dict(instruction='instruction', alpaca='alpaca', definition='definition', own='Q: {instruction}\n{input}\nA: ').items():
    data(f'template-{label}', data='alpaca.json', partition='iid', num_clients=2, template=t)
data('system_prompt', system_prompt='Be short.')
data('gym', data='reasoning-gym', tasks=GYM, train_size=6, test_size=3, clients_per_task=3)
data('gym-unseen', data='reasoning-gym', tasks=GYM, train_size=6, test_size=3, unseen_tasks=['gcd'], valid_share=.2)
data('run-wards', from_files, data='wards', holdout_share=.1, eval_every=1, graph='learned')
data('run-tasks', from_files, graph='tasks', unseen_tasks=['odd'])
data('run-unseen', from_files, unseen_clients=1, name='fedavg')
data('run-cut', from_files, data='long.jsonl', max_length=64)
data('run-chat', from_files, data='chat.jsonl')
data('run-choices', from_files, data='big', partition='iid', num_clients=2)
data('run-bad', from_files, data='bad.jsonl', on_bad='drop')
data('run-gym', from_files, data='reasoning-gym', tasks=GYM, train_size=6, test_size=3, graph='tasks')

# the command line
def cli(label, *said, **settings): case(f'cli-{label}', commands, list(said), **{'num_clients': None, 'data': 'wards', **settings})
cli('graph', 'graph mine.yaml --json', graph='complete')
cli('graph-tasks', 'graph mine.yaml --json', data='one.jsonl', graph='tasks', normalise='row', lambda_=2.)
cli('plan', 'plan mine.yaml --no-measure --json', 'plan mine.yaml --no-measure --json --clients 5000 --m 0.01')
cli('plan-fedex', 'plan mine.yaml --no-measure --json', name='fedex', keep_trained=True)
cli('show-data', 'show-data mine.yaml --json', 'show-data --data one.jsonl --model tiny --partition task --json')
cli('run', 'run mine.yaml', 'check run --json', 'graph run --json', rounds=1, unseen_clients=['ward0'], graph='learned', cross='bleu')
cli('later', 'run mine.yaml', 'resume run --rounds 2', 'test run --json --cross loss', 'export run --client ward1 --to out/a',
    'export run --client 2 --merge --to out/b', 'export run --all --to out/c', 'check run --json', rounds=1)
cli('options', 'run --data wards --model tiny --device cpu --name fedsa --rounds 2 --local_step 2 --max_new_tokens 2 --output_dir run')
cli('compare', 'compare mine.yaml --algorithms local,mira --seeds 0,1 --tune "{\'*\': {lr: [.001, .1]}}"', output_dir='runs', rounds=1)
cli('sweep', 'compare mine.yaml --algorithms fedavg --seeds 2 --sweep "{local_step: [1, 3]}"', output_dir='runs', rounds=1)

# federations on Flower
for name in 'mira', 'fedavg', 'ditto', 'fedex': case(f'flower-{name}', federation, name=name, m=.75)
case('flower-clip', federation, {'clip': .01}, name='fedavg')
case('flower-hetlora', federation, name='hetlora', ranks=RANKS)
case('flower-sums', federation, secure_aggregation=True, name='fedavg')
case('flower-sums-mira', federation, secure_aggregation=True, graph='complete')

# functions
for f in graphs, selections, matrices, scores, draws, partitions: case(f'functions-{f.__name__}', f)

# ---------------------------------------------------------------- checksums

SEEN = ('history.jsonl', 'scorecard.json', 'generations.jsonl', 'graph.npy', 'names.json', 'adapter_config.json', 'cross_evaluation.json',
        'compare.json', 'compare.csv', 'adapters.json', 'serve.sh')

def short(data): return hashlib.sha256(data).hexdigest()[:12]

def plain_value(o):
    "Numpy's and torch's values for JSON."
    return o.tolist() if hasattr(o, 'tolist') else str(o)

def when(path):
    "A sort key that goes with time: rounds first, and in a round training, graph, mixing."
    folder, *parts = path.removeprefix('run/').split('/')
    if not folder.isdecimal() or not parts: return 1, 0, 0, path
    return 0, int(folder), [parts[0].startswith('trained'), parts[0] == 'graph.npy', True].index(True), path

def content(path, folder):
    "What a file has, without the name of the folder of all runs."
    return path.read_bytes() if path.suffix == '.safetensors' else path.read_bytes().replace(os.fsencode(folder), b'.')

def digests(folder):
    "File -> short checksum of what it has, the earliest first; an adapter goes by its folder, and all adapter_config.json are one."
    seen = [p for p in folder.rglob('*') if p.parent != folder and (p.suffix == '.safetensors' or p.name in SEEN)]
    found = {str(p.relative_to(folder)): content(p, folder) for p in seen}
    configs = [n for n in sorted(found) if n.endswith('/adapter_config.json')]
    def called(name): return name.removeprefix('run/').removesuffix('/adapter_model.safetensors')
    out = {called(n): short(found[n]) for n in sorted(found.keys() - set(configs), key=when)}
    if configs: out['*/adapter_config.json'] = short(b''.join(n.encode() + found[n] for n in configs))
    return out

def run_case(case, folder):
    "The checksums of a case, run in a folder of its own."
    folder.mkdir()
    os.chdir(folder)   # so that no path of this machine comes into a file
    os.environ['FEDAI_CACHE'] = str(folder/'cache')
    try: said = case.run() or {}
    except Exception as e: return {'FAILED': f'{type(e).__name__}: {e}'[:500]}
    return {**digests(folder), **{f'said/{k}': short(json.dumps(v, sort_keys=True, default=plain_value).encode()) for k, v in said.items()}}

def run_all(cases, quiet=False):
    "Name -> file -> checksum."
    out, home = {}, Path.cwd()
    with tempfile.TemporaryDirectory() as tmp, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for n, c in enumerate(cases):
            began = time.process_time()
            try: out[c.name] = run_case(c, Path(tmp).resolve()/c.name)
            finally: os.chdir(home)
            if not quiet: print(f'[{n+1}/{len(cases)}] {c.name}: {len(out[c.name])} files, {time.process_time() - began:.1f} s', flush=True)
    if not quiet: print(f'{time.process_time():.0f} s of processor time')
    return out

def made_with():
    "What else decides on bits."
    versions = {p: importlib.metadata.version(p) for p in ('torch', 'numpy', 'transformers', 'peft')}
    model = [l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')] if Path('/proc/cpuinfo').exists() else []
    return {**versions, 'capability': torch.backends.cpu.get_cpu_capability(), 'processor': model[0] if model else 'unknown'}

# ---------------------------------------------------------------- comparing

def difference(name, old, new):
    "A line on how a run differs, or `None`."
    if 'FAILED' in new: return f"{name}: failed: {new['FAILED']}"
    if old is None: return f'{name}: not there before'
    if 'FAILED' in old: return f"{name}: failed before: {old['FAILED']}"
    order = [*new, *(f for f in old if f not in new)]
    differ = [f for f in order if old.get(f) != new.get(f)]
    if not differ: return None
    first, others = differ[0], len(differ) - 1
    how = 'differs' if first in old and first in new else 'is new' if first in new else 'is gone'
    return f'{name}: {first} {how}, ' + (f'and {others} more of {len(order)} files differ' if others else f'alone among {len(order)} files')

def compare(old, new, whole=True):
    "Print each run that differs; the exit code."
    said = [l for n in new if (l := difference(n, old.get(n), new[n]))]
    said += [f'{n}: not there any more' for n in old if whole and n not in new]
    print('\n'.join(said) or f'{len(new)} runs, {sum(map(len, new.values()))} files: the same to the bit')
    if said: print(f'{len(said)} of {len(new)} runs differ')
    return int(bool(said))

def against(rev, word, cases):
    "Compare with the library of a commit, which runs beside this one."
    def git(*args):
        if subprocess.run(['git', '-C', str(ROOT), 'worktree', *args], stdout=subprocess.DEVNULL).returncode: sys.exit('git failed')
    with tempfile.TemporaryDirectory() as tmp:
        there, to = Path(tmp)/'library', Path(tmp)/'found.json'
        git('add', '--quiet', '--detach', str(there), rev)
        try:
            command = [sys.executable, __file__, '--to', str(to), '-k', word]
            with subprocess.Popen(command, env={**os.environ, 'BITS_LIBRARY': str(there), 'PYTHONPATH': ''}) as other:
                try: new = run_all(cases)
                except BaseException: other.terminate(); raise
            if other.returncode: sys.exit(f'the runs with the library of {rev} failed')
            return compare(json.loads(to.read_text()), new)
        finally: git('remove', '--force', str(there))

def check(cases, word):
    "Run, and compare with bits.json; the exit code."
    kept, now = json.loads(BITS.read_text()), made_with()
    if kept['made_with'] == now: return compare(kept['runs'], run_all(cases), not word)
    print('bits.json can say nothing here, since floating-point bits may differ:')
    for k, here in now.items():
        there = kept['made_with'].get(k)
        print(f'  {k}: {here}' if there == here else f'  {k}: {there} there, {here} here')
    print('compare with a commit instead: python tools/bits.py --against REV')
    return 2

def uncovered():
    "Algorithms, values of settings, and settings that no run has."
    used = {f.name: [{**BASE, **c.settings}.get(f.name, getattr(FedConfig(), f.name)) for c in CASES] for f in fields(FedConfig)}
    out = [f'algorithm {a["name"]}' for a in F.list_algorithms() if a['name'] not in used['name']]
    out += [f'{f.name}: {v}' for f in fields(FedConfig) for v in f.metadata['choices'] or () if v not in used[f.name]]
    return out + [f'{n}: any value but the default' for n, v in used.items() if all(o == getattr(FedConfig(), n) for o in v)]

def write(cases):
    "Run, and write bits.json; the exit code."
    found = run_all(cases)
    if bad := [f"{n}: {o['FAILED']}" for n, o in found.items() if 'FAILED' in o]: sys.exit('\n'.join(bad))
    runs = ',\n'.join(f'{json.dumps(name)}: {json.dumps(files)}' for name, files in found.items())   # a line each
    BITS.write_text(f'{{"made_with": {json.dumps(made_with())},\n"runs": {{\n{runs}\n}}}}\n')
    print(f'wrote {BITS} ({BITS.stat().st_size/1e3:.0f} KB): {len(found)} runs')
    return 0

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--write', action='store_true', help='write bits.json')
    ap.add_argument('--against', metavar='REV', help='a commit to compare with')
    ap.add_argument('-k', metavar='WORD', default='', help='only runs whose names contain WORD')
    ap.add_argument('--list', action='store_true', help='only names, and what no run covers')
    ap.add_argument('--to', help=argparse.SUPPRESS)   # a file for what was found, for `against`
    args = ap.parse_args()
    torch.set_num_threads(1)
    if Path(F.__file__).resolve().parent.parent != LIBRARY: sys.exit(f'fedai is {F.__file__}, not that of {LIBRARY}')
    cases = [c for c in CASES if args.k in c.name]
    if not cases: sys.exit(f'no run has {args.k!r} in its name')
    if len({c.name for c in CASES}) < len(CASES): sys.exit('two runs have one name')
    if args.list: print('\n'.join(c.name for c in cases), '\nnot covered:', *uncovered(), sep='\n')
    elif args.to: Path(args.to).write_text(json.dumps(run_all(cases, True)))
    elif args.against: return against(args.against, args.k, cases)
    elif not args.write: return check(cases, args.k)
    elif args.k: sys.exit('--write writes all runs')
    else: return write(cases)
    return 0

if __name__ == '__main__': sys.exit(main())
