"""What is shipped, loaded by peft and transformers alone, gives what the run's own server gives; what can't be shipped is refused,
and nothing half-written stays."""
import json, os, re, subprocess, sys, warnings
import pytest, torch
from html import unescape
from pathlib import Path
from unittest.mock import patch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from conftest import client_data, sums
from fedai.algorithms import get_server, list_algorithms
from fedai.cli import main
from fedai.config import ConfigError, load_config
from fedai.models import get_base_model, get_tokenizer
from fedai.data.prompts import Prompter
from fedai.servers import Server_mira
from fedai.study.comparison import compare
from fedai.reading import client_names, open_run
from fedai.ship import Chat, export_adapter, export_all, push_folder
from fedai.store.rows import StoreError
from fedai.evaluate.tracking import Callback, Trackers

BUILT_IN = [o['name'] for o in list_algorithms()]
ADDS = ('flora','fedex')
QUESTION = '7 + 100 ='

class Named(list):
    def __init__(self, data, names): super().__init__(data); self.names = names

def named_data(K=4): return Named(client_data(K), [f'ward {i}' for i in range(K)])

def run(make_cfg, name='mira', test=False, data=None, **kw):
    kw = {**dict(name=name, graph='complete', lr=.03, optimizer='SGD' if name == 'fedu' else 'AdamW'), **kw}
    s = get_server(make_cfg(**kw), data or named_data(kw.get('num_clients', 4)), callbacks=[])
    s.fit()
    if test: s.test(baselines=True)
    return s

def ids_of(cfg): return torch.tensor([Prompter(get_tokenizer(cfg), cfg.template).encode(dict(instruction=QUESTION, output='x')).prompt])

@torch.no_grad()
def logits(model, ids): return model.eval()(input_ids=ids).logits

def served(s, i):
    "What the run's own server answers with a client's row."
    s.live.load(s.test_row(s.client_list[i]))
    return logits(s.model, ids_of(s.cfg))

@torch.no_grad()
def loaded(folder, cfg):
    "An exported adapter, as its card says: the base model, with what is to be added, and peft."
    base,tok = get_base_model(cfg.replace(add_tokens=[])),AutoTokenizer.from_pretrained(folder)
    if cfg.add_tokens: base.resize_token_embeddings(len(tok))
    if (change := Path(folder)/'base_change.safetensors').exists():
        for n,t in load_file(change).items(): base.get_parameter(n).add_(t)
    return PeftModel.from_pretrained(base, str(folder))

def tree(folder): return sorted(str(o.relative_to(folder)) for o in Path(folder).rglob('*') if o.is_file())

# adapters and merged models

@pytest.mark.parametrize('name', BUILT_IN)
def test_every_algorithm_ships_what_it_is_tested_with(name, make_cfg, tmp_path):
    s = run(make_cfg, name, m=.5 if name not in ('cfl','fedavg_ft') else 1., rounds=3)
    before = {o: (Path(s.cfg.output_dir)/o).read_bytes() for o in tree(s.cfg.output_dir)}
    for i in (0,3):
        to = export_adapter(s.cfg.output_dir, i, tmp_path/f'out{i}', data=s.lst_data_dict)
        want = served(s, i)
        torch.testing.assert_close(logits(loaded(to, s.cfg), ids_of(s.cfg)), want)
        assert (to/'base_change.safetensors').exists() == (name in ADDS)
        merged = export_adapter(s.cfg.output_dir, i, tmp_path/f'merged{i}', merge=True, data=s.lst_data_dict)
        model = AutoModelForCausalLM.from_pretrained(merged)
        torch.testing.assert_close(logits(model, ids_of(s.cfg)), want, rtol=1e-4, atol=1e-5)
        assert not any('lora' in n for n in model.state_dict())
    plain = logits(get_base_model(s.cfg), ids_of(s.cfg))
    assert (plain - want).abs().max() > 1e-3   # or all of the above says nothing
    assert before == {o: (Path(s.cfg.output_dir)/o).read_bytes() for o in tree(s.cfg.output_dir)}   # reading changes nothing

LORAS = [dict(ranks=[1,2,4,3]), dict(use_rslora=True, lora_alpha=5.), dict(add_tokens=['<a>','<b>']), dict(space='product'),
         dict(target_modules='all-linear'), dict(adapt_layers='last:1')]

@pytest.mark.parametrize('kw', LORAS, ids=str)
def test_other_loras(kw, make_cfg, tmp_path):
    s = run(make_cfg, **kw)
    for i in (0,2):
        want = served(s, i)
        torch.testing.assert_close(logits(loaded(export_adapter(s.cfg.output_dir, i, tmp_path/f'a{i}'), s.cfg), ids_of(s.cfg)), want)
        merged = export_adapter(s.cfg.output_dir, i, tmp_path/f'm{i}', merge=True)
        torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(merged), ids_of(s.cfg)), want, rtol=1e-4, atol=1e-5)
        tok = AutoTokenizer.from_pretrained(merged)
        assert tok('<a> 3').input_ids == s.tokenizer('<a> 3').input_ids and tok.eos_token_id == s.tokenizer.eos_token_id

def test_a_merged_model_answers_as_the_test_did(make_cfg, tmp_path):
    s = run(make_cfg, test=True)
    to = export_adapter(s.cfg.output_dir, 1, tmp_path/'m', merge=True)
    model,tok = AutoModelForCausalLM.from_pretrained(to),AutoTokenizer.from_pretrained(to)
    said = [o for o in map(json.loads, (Path(s.cfg.output_dir)/'generations.jsonl').read_text().splitlines()) if o['client'] == 1]
    for o in said:
        asked = [dict(role='user', content=o['instruction'])]
        ids = tok.apply_chat_template(asked, add_generation_prompt=True, return_tensors='pt', return_dict=True)
        out = model.generate(**ids, max_new_tokens=s.cfg.max_new_tokens, do_sample=False)[0, ids['input_ids'].shape[1]:]
        assert tok.decode(out, skip_special_tokens=True).strip() == o['generated']

def test_a_server_in_memory_ships_and_goes_on(make_cfg, tmp_path):
    s = run(make_cfg)
    want = served(s, 1)
    row = s.live.row.clone()
    to = export_adapter(s, 'ward 1', tmp_path/'m', merge=True)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(to), ids_of(s.cfg)), want, rtol=1e-4, atol=1e-5)
    assert torch.equal(s.live.row, row) and torch.equal(served(s, 1), want)

def test_the_scores_of_a_client_that_takes_another_model_need_its_data(make_cfg, tmp_path):
    s = run(make_cfg, 'ifca')
    other = client_data(5)[1:]
    with pytest.raises(ConfigError, match='`data`: expected the data of the run'):
        export_adapter(s.cfg.output_dir, 0, tmp_path/'x', data=other)
    assert not (tmp_path/'x').exists()

# all at once

@pytest.mark.parametrize('name', ['mira','fedavg','flora','ditto'])
def test_all_clients_with_one_base_model(name, make_cfg, tmp_path):
    s = run(make_cfg, name, test=True, r=12)
    to = export_all(s.cfg.output_dir, tmp_path/'all')
    listed = json.loads((to/'adapters.json').read_text())
    assert [(o['client'], o['name'], o['path']) for o in listed['adapters']] == [(i, f'ward {i}', f'ward-{i}') for i in range(4)]
    assert [o['loss'] for o in listed['adapters']] == [c['loss'] for c in s.scorecard['clients'].values()]
    for o in listed['adapters']:
        assert json.loads((to/o['path']/'adapter_config.json').read_text())['base_model_name_or_path'] == listed['base'] == str(to/'base')
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(listed['base']), str(to/o['path']))
        assert (to/'base'/'model.safetensors').stat().st_mode == (to/'base'/'config.json').stat().st_mode
        torch.testing.assert_close(logits(model, ids_of(s.cfg)), served(s, o['client']))

def test_the_command_is_one_that_a_shell_takes(make_cfg, tmp_path):
    "A `vllm` that writes down its arguments stands in for the real one."
    data = Named(client_data(4), ["it's", 'a b', 'base', '../x'])
    s = run(make_cfg, test=True, data=data, r=12)
    to = export_all(s.cfg.output_dir, tmp_path/'all of them')
    bin = tmp_path/'bin'
    bin.mkdir()
    (bin/'vllm').write_text('#!/bin/sh\npwd\nfor a in "$@"; do echo "$a"; done\n')
    (bin/'vllm').chmod(0o755)
    env = {**os.environ, 'PATH': f"{bin}:{os.environ['PATH']}"}
    out = subprocess.run([to/'serve.sh', '--port', '8001'], capture_output=True, text=True, check=True, env=env).stdout.splitlines()
    modules,more = out[out.index('--lora-modules')+1:-2],out[-2:]
    assert out[:8] == [str(to),'serve','./base','--enable-lora','--max-lora-rank','16','--max-loras','4']
    assert more == ['--port','8001'] and len(modules) == 4 and len(set(modules)) == 4
    assert all((to/o.split('=')[1]/'adapter_model.safetensors').is_file() for o in modules)
    assert all((to/o['path']).resolve().parent == to.resolve() for o in json.loads((to/'adapters.json').read_text())['adapters'])

def test_names_that_look_alike_have_folders_of_their_own(make_cfg, tmp_path):
    names = ['x y','x-y-2','x/y','X Y','serve.sh','Kinderklinik Köln','東京']
    s = run(make_cfg, data=Named(client_data(7), names), num_clients=7)
    to = export_all(s.cfg.output_dir, tmp_path/'all', data=Named(client_data(7), names))
    paths = [o['path'] for o in json.loads((to/'adapters.json').read_text())['adapters']]
    assert len({p.lower() for p in paths}) == 7 and all((tmp_path/'all'/p/'adapter_model.safetensors').is_file() for p in paths)

# the card

def test_names_stay_text_in_the_card(make_cfg, tmp_path):
    html = pytest.importorskip('markdown_it').MarkdownIt().render
    names = ['<b>A</b> & co','[x](http://e.org)','*a* `b`','_c_ a_b']
    s = run(make_cfg, test=True, data=Named(client_data(4), names))
    for i,n in enumerate(names):
        card = (export_adapter(s.cfg.output_dir, i, tmp_path/str(i))/'README.md').read_text().split('---', 2)[2]
        title = re.search('<h1>(.*?)</h1>', html(card))[1]
        assert not re.search('<[^>]*>', title) and unescape(title) == f'{n}: a LoRA for tiny', (n, title)

def test_the_card_says_what_it_must(make_cfg, tmp_path):
    s = run(make_cfg, test=True)
    to = export_adapter(s.cfg.output_dir, 'ward 2', tmp_path/'one')
    card = ModelCard.load(to/'README.md')
    assert card.data.base_model == 'tiny' and card.data.library_name == 'peft' and card.data.pipeline_tag == 'text-generation'
    assert {'lora','federated-learning','mira'} <= set(card.data.tags)
    rows = {c[1].strip(): [o.strip() for o in c[2:-1]] for l in card.text.splitlines() if l.startswith('|') and len(c := l.split('|')) > 3}
    assert rows['client'] == ['ward 2, number 2 of 4 (counted from 0)'] and rows['task'] == ['plus0']
    assert rows['training examples'] == ['12'] and rows['test questions'] == ['4'] and rows['rounds'] == ['2 of 2']
    own,base,mean = (p['clients']['2'] for p in (s.scorecard, s.scorecard['base'], s.scorecard['average']))
    assert rows['loss'] == [f"{own['loss']:.3f}", f"{base['loss']:.3f}", '', f"{mean['loss']:.3f}"]
    assert 'lr: 0.03' in card.text and 'coupling' not in card.text and str(tmp_path) not in card.text
    assert not any(o['output'] in card.text for o in sums(2, 4, start=50))   # nothing of anybody's data
    text = ModelCard.load(export_adapter(s.cfg.output_dir, 2, tmp_path/'m', merge=True)/'README.md')
    assert text.data.library_name == 'transformers' and 'peft' not in text.text.split('```')[1]

@pytest.mark.parametrize('name,merge', [('mira',False),('flora',False),('flora',True)])
def test_the_cards_code_runs(name, merge, make_cfg, tmp_path, monkeypatch):
    s = run(make_cfg, name)
    want = served(s, 1)
    get_base_model(s.cfg).save_pretrained(tmp_path/'tiny')
    to = export_adapter(s.cfg.output_dir, 1, tmp_path/'tiny'/'out', merge=merge)
    code = (to/'README.md').read_text().split('```python\n')[1].split('```')[0].replace("'tiny'", repr(str(tmp_path/'tiny')))
    monkeypatch.chdir(to)
    there = {}
    exec(code, there)
    torch.testing.assert_close(logits(there['model'], ids_of(s.cfg)), want, rtol=1e-4, atol=1e-5)
    assert there['tokenizer']('3').input_ids == s.tokenizer('3').input_ids

def test_a_client_is_found_by_name_before_the_run_is_tested(make_cfg, tmp_path):
    s = run(make_cfg)
    assert not (s.store.root/'scorecard.json').exists()
    assert 'ward 2' in (export_adapter(s.cfg.output_dir, 'ward 2', tmp_path/'a')/'README.md').read_text()
    assert client_names(open_run(s.cfg.output_dir, False)) == [f'ward {i}' for i in range(4)]

def test_a_card_says_that_its_scores_are_old(make_cfg, tmp_path):
    s = run(make_cfg, test=True, rounds=1)
    assert 'The scores are of round' not in (export_adapter(s.cfg.output_dir, 0, tmp_path/'a')/'README.md').read_text()
    get_server(s.cfg.replace(rounds=2), named_data(), callbacks=[]).fit()
    card = (export_adapter(s.cfg.output_dir, 0, tmp_path/'b')/'README.md').read_text()
    assert 'The scores are of round 1; the adapter is of round 2.' in card

# what is refused

def refused(match, *args, **kw):
    with pytest.raises(ConfigError, match=match): export_adapter(*args, **kw)

def test_bad_input(make_cfg, tmp_path):
    s = run(make_cfg)
    root,to = s.cfg.output_dir,tmp_path/'to'
    for no in (tmp_path/'nowhere', tmp_path): refused('`run`: expected the folder of a run', no, 0, to)
    for i in (-1, 4, '4', '-1', 'nobody', True, 1.5, None, '²', ''): refused('`client`: expected a number from 0 to 3', root, i, to)
    refused(r"did you mean 'ward 1'", root, 'wad 1', to)   # known before a test
    (tmp_path/'full').mkdir()
    (tmp_path/'full'/'mine').write_text('x')
    (tmp_path/'file').write_text('x')
    for o in ('full','file'):
        refused("`to`: expected a folder that isn't there yet, or an empty one", root, 0, tmp_path/o)
        with pytest.raises(ConfigError, match='`to`'): export_all(root, tmp_path/o)
    refused('`to`: expected a folder that can be written', root, 0, tmp_path/'file'/'in it')
    assert tree(tmp_path/'full') == ['mine'] and (tmp_path/'file').read_text() == 'x'
    (tmp_path/'empty').mkdir()
    export_adapter(root, 0, tmp_path/'empty')
    assert not to.exists() and not list(tmp_path.glob('.*.tmp'))

def test_a_run_without_own_adapters(make_cfg, tmp_path):
    s = run(make_cfg)
    p = Path(s.cfg.output_dir)/'config.yaml'
    p.write_text(p.read_text().replace('secure_aggregation: false', 'secure_aggregation: true'))
    assert load_config(p).secure_aggregation
    refused("`run`: expected one whose server has the clients' adapters .*keeps its own adapter", s.cfg.output_dir, 0, tmp_path/'to')
    for f in (lambda: Chat(s.cfg.output_dir, 0), lambda: export_all(s.cfg.output_dir, tmp_path/'to')):
        with pytest.raises(ConfigError, match='`run`'): f()
    assert not (tmp_path/'to').exists()

def test_runs_that_have_nothing_to_ship(make_cfg, tmp_path):
    s = get_server(make_cfg(rounds=1), client_data(4), callbacks=[])
    refused('one that has finished a round', s.cfg.output_dir, 0, tmp_path/'to')
    x = [(torch.randn(3), torch.tensor(0))]*4
    net = get_server(make_cfg(name='fedavg'), [{'train': x, 'test': x}]*4, torch.nn.Linear(3, 2), callbacks=[],
                     criterion=torch.nn.CrossEntropyLoss())
    net.fit()
    refused('a run of a language model', net.cfg.output_dir, 0, tmp_path/'to')
    s = run(make_cfg)
    p = Path(s.cfg.output_dir)/'config.yaml'
    p.write_text(p.read_text().replace('dtype: auto', 'dtype: 4bit', 1))
    refused('`merge`: expected false for a run with `dtype: 4bit`', s.cfg.output_dir, 0, tmp_path/'to', merge=True)

def test_a_damaged_adapter_is_not_shipped(make_cfg, tmp_path):
    s = run(make_cfg)
    f = s.store.path(1)/s.store.weights
    f.write_bytes(f.read_bytes()[:-1] + b'\1')
    with pytest.raises(StoreError, match='altered'): export_adapter(s.cfg.output_dir, 1, tmp_path/'to')
    with pytest.raises(StoreError, match='altered'): export_all(s.cfg.output_dir, tmp_path/'all')
    assert sorted(o.name for o in tmp_path.iterdir() if o.name != 'run0') == []

def test_nothing_half_written_stays(make_cfg, tmp_path):
    s = run(make_cfg)
    for where in ('fedai.ship.model_card', 'fedai.ship._write_change'):
        with patch(where, side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            export_adapter(s.cfg.output_dir, 0, tmp_path/'to')
    assert [o.name for o in tmp_path.iterdir()] == ['run0']

def test_another_base_model_is_said(make_cfg, tmp_path):
    s = run(make_cfg, test=True)
    p = Path(s.cfg.output_dir)/'config.yaml'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        open_run(s.cfg.output_dir)
    state = Path(s.cfg.output_dir)/'state.json'
    state.write_text(state.read_text().replace(s.store.identity['base_model'], '0'*16))
    with pytest.warns(UserWarning, match="isn't bit for bit"): open_run(s.cfg.output_dir)
    p.write_text(p.read_text().replace('target_modules:\n- q_proj\n', 'target_modules:\n'))
    with pytest.raises(ConfigError, match='`model`: expected the one of the run'): open_run(s.cfg.output_dir)

class Server_mine(Server_mira): "A class that no config names."

def test_a_class_of_ones_own(make_cfg, tmp_path):
    s = Server_mine(make_cfg(graph='complete', lr=.03), client_data(4), callbacks=[])
    s.fit()
    torch.testing.assert_close(logits(loaded(export_adapter(s.cfg.output_dir, 1, tmp_path/'to'), s.cfg), ids_of(s.cfg)), served(s, 1))
    state = Path(s.cfg.output_dir)/'state.json'
    state.write_text(state.read_text().replace('Server_mine', 'Server_gone'))
    refused('`imports`: expected the file with the class of the run, Server_gone', s.cfg.output_dir, 0, tmp_path/'other')

# the Hub

class Api:
    "Stands in for the Hub."
    def __init__(self, fails=None): self.calls,self.fails = [],fails
    def create_repo(self, repo, private, exist_ok):
        if self.fails: raise self.fails
        self.calls.append((repo, private, exist_ok))
        return f'https://huggingface.co/{repo}'
    def upload_folder(self, repo_id, folder_path, commit_message): self.calls.append((repo_id, tree(folder_path)))

def test_push_needs_a_login_and_a_network(make_cfg, tmp_path):
    s = run(make_cfg)
    refused('HF_HUB_OFFLINE is set', s.cfg.output_dir, 0, tmp_path/'to', push='me/mine')
    with patch('huggingface_hub.constants.HF_HUB_OFFLINE', False), patch('huggingface_hub.get_token', lambda: None):
        refused('hf auth login', s.cfg.output_dir, 0, tmp_path/'to', push='me/mine')
    for bad in ('mine','a/b/c','a b/c','me/..','me/x--y'): refused('`push`: expected', s.cfg.output_dir, 0, tmp_path/'to', push=bad)
    assert not (tmp_path/'to').exists()

@pytest.mark.parametrize('env,message', [
    (dict(HF_HUB_OFFLINE='1'), 'HF_HUB_OFFLINE is set'),
    (dict(HF_HUB_OFFLINE='0', HF_TOKEN='', HF_TOKEN_PATH='nowhere'), 'hf auth login'),
    (dict(HF_HUB_OFFLINE='0', HF_TOKEN='x', HF_ENDPOINT='http://127.0.0.1:9'), 'the folder is whole in')])
def test_push_from_a_process_of_its_own(make_cfg, tmp_path, env, message):
    "Where nothing has imported the Hub's package before."
    s = run(make_cfg)
    argv = ['export', s.cfg.output_dir, '--client', '0', '--to', str(tmp_path/'to'), '--merge', '--push', 'me/mine']
    r = subprocess.run([sys.executable, '-m', 'fedai', *argv],
                       capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(Path(__file__).parents[1]), **env})
    assert r.returncode == 2 and r.stderr.startswith('fedai: `push`: expected'), r.stderr
    assert message in r.stderr and 'Traceback' not in r.stderr, r.stderr
    assert (tmp_path/'to'/'model.safetensors').exists() == ('HF_ENDPOINT' in env)

def test_push(make_cfg, tmp_path):
    s = run(make_cfg)
    api = Api()
    with patch('huggingface_hub.constants.HF_HUB_OFFLINE', False), patch('huggingface_hub.get_token', lambda: 'x'), \
         patch('huggingface_hub.HfApi', lambda: api):
        refused('a run whose base model is on the Hub, or `merge`', s.cfg.output_dir, 0, tmp_path/'to', push='me/mine')   # tiny isn't
        to = export_adapter(s.cfg.output_dir, 0, tmp_path/'to', merge=True, push='me/mine')
        assert api.calls == [('me/mine', True, False), ('me/mine', tree(to))]
        assert "here = 'me/mine'" in (to/'README.md').read_text()
        api.fails = OSError('409: there is one')
        with pytest.raises(ConfigError, match='a new repository of yours on the Hub .409: there is one.; the folder is whole in'):
            push_folder(to, 'me/mine')

# chat

def play(chat, lines):
    "What is asked and said when these lines are typed."
    import io
    lines,out,asked = iter(lines),io.StringIO(),[]
    def ask(prompt):
        asked.append(prompt)
        try: line = next(lines)
        except StopIteration: raise EOFError
        if isinstance(line, type): raise line
        return line
    chat.loop(ask, out)
    return asked,out.getvalue().splitlines()

@pytest.mark.parametrize('name', ['mira','flora','ditto'])
def test_a_chat_gives_the_answers_of_the_test(name, make_cfg):
    s = run(make_cfg, name, test=True, max_new_tokens=8, rounds=4)
    chat = Chat(s.cfg.output_dir, most=8)
    said = [json.loads(o) for o in (Path(s.cfg.output_dir)/'generations.jsonl').read_text().splitlines()]
    assert len({o['generated'] for o in said} | {o['base']['generated'] for o in said}) > 1
    for o in said[::3] + said[1::5]:
        chat.use(o['client'])
        assert ''.join(chat.answer(o['instruction'])).strip() == o['generated']
        chat.use()
        assert ''.join(chat.answer(o['instruction'])).strip() == o['base']['generated']

def test_commands(make_cfg):
    s = run(make_cfg, test=True)
    chat = Chat(s.cfg.output_dir, 'ward 1', most=4)
    lines = ['/client 3', '/base', '/client ward 2', '/clients', '/help', '', '/client', '/client 9', '/nothing', KeyboardInterrupt,
             '/quit', 'never']
    asked,out = play(chat, lines)
    assert asked[:4] == ['ward 1> ','ward 3> ','base> ','ward 2> '] and len(asked) == 11
    text = '\n'.join(out)
    for o in ('    3  ward 3', 'plus1', 'Ctrl-C stops an answer', '`/client`: expected a number or name after it',
              "`client`: expected a number from 0 to 3, or a client's name, got '9'", '`/nothing`: expected one of /client',
              '(Ctrl-D or /quit ends)'): assert o in text, o
    assert play(chat, [])[0] == ['ward 2> ']

def test_an_answer_ends_where_a_model_has_no_more_positions(make_cfg, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=261, n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=None, eos_token_id=1))
    with torch.no_grad():   # it says token 7 for ever
        gpt2.transformer.ln_f.weight.zero_()
        gpt2.transformer.ln_f.bias.copy_(gpt2.transformer.wte.weight[7].mul_(100))
    gpt2.save_pretrained(tmp_path/'gpt2')
    get_tokenizer(make_cfg()).save_pretrained(tmp_path/'gpt2')
    s = Server_mira(make_cfg(model=str(tmp_path/'gpt2'), target_modules=['c_attn'], max_length=64, rounds=1), client_data(4), callbacks=[])
    s.fit()
    chat = Chat(s.cfg.output_dir, 1, most=200)
    asked = len(chat.prompter.encode(dict(instruction='one two', output='x')).prompt)
    assert list(chat.tokens('one two')) == [7]*(64 - asked + 1)   # the last one needs no position

def test_a_chat_through_a_pipe_gives_answers_alone(make_cfg):
    s = run(make_cfg, test=True)
    argv = [sys.executable, '-m', 'fedai', 'chat', s.cfg.output_dir, '--tokens', '3']
    out = subprocess.run(argv, input='/client 1\n\n1 + 1 =\n/client 9', capture_output=True, text=True)
    assert out.returncode == 0 and not out.stderr and '> ' not in out.stdout and "got '9'" in out.stdout, out

def test_a_question_that_is_too_long_says_so(make_cfg):
    chat = Chat(run(make_cfg, max_length=24).cfg.output_dir, 1, most=2)
    n = len(chat.prompter.tokenizer(chat.prompter.render(dict(instruction='12 '*40))[0], add_special_tokens=False).input_ids)
    long,short = (play(chat, [q])[1] for q in ('12 '*40,'1 + 1 ='))
    said = next(o for o in long if 'max_length' in o)
    cut = int(re.search(r'given (\d+) tokens', said)[1])
    assert '`max_length` 24' in said and n - 24 <= cut < n and not [o for o in short if 'max_length' in o]

def test_a_wrong_client_is_found_before_the_model_is_loaded(make_cfg):
    from fedai import servers
    s = run(make_cfg)
    with patch.object(servers.BaseServer, '_make_model', side_effect=AssertionError), pytest.raises(ConfigError, match="got '9'"):
        Chat(s.cfg.output_dir, '9')

def test_an_answer_that_is_stopped(make_cfg):
    chat = Chat(run(make_cfg).cfg.output_dir, 1, most=50)
    def some(text):
        yield from (5,6)
        raise KeyboardInterrupt
    with patch.object(chat, 'tokens', some): asked,out = play(chat, ['question'])
    assert out[1].endswith(' (stopped)') and len(asked) == 2

def test_a_letter_of_several_tokens_comes_whole(make_cfg):
    chat = Chat(run(make_cfg).cfg.output_dir, 1)
    ids = chat.server.tokenizer('aüé€').input_ids
    assert len(ids) == 8
    with patch.object(chat, 'tokens', lambda text: iter(ids)): assert list(chat.answer('x')) == ['a','ü','é','€']
    with patch.object(chat, 'tokens', lambda text: iter(ids[:-1])): assert ''.join(chat.answer('x')).startswith('aüé')

def test_what_is_remembered(make_cfg):
    chat = Chat(run(make_cfg).cfg.output_dir, 1)
    seen = []
    def tokens(text):
        seen.append(list(chat.turns))
        return iter(chat.server.tokenizer('yes').input_ids)
    with patch.object(chat, 'tokens', tokens): play(chat, ['one','two','/talk','three','four','/client 2','five','/talk','six'])
    assert seen == [[],[],[],[dict(role='user', content='three'), dict(role='assistant', content='yes')],[],[]]
    chat.remembers,chat.turns = True,[dict(role='user', content='3'), dict(role='assistant', content='4')]
    with patch.object(chat.prompter, 'encode', side_effect=ConfigError('x', 'y', 'z')) as e, pytest.raises(ConfigError):
        next(chat.tokens('5'))
    assert chat.prompter.render(e.call_args[0][0])[0] == '<|user|>3<|end|><|assistant|>4<|end|><|user|>5<|end|><|assistant|>'

# the command line

def test_commands_of_the_shell(make_cfg, tmp_path, capsys):
    s = run(make_cfg, test=True)
    root = s.cfg.output_dir
    assert main(['export', root, '--client', 'ward 1', '--to', f'{tmp_path}/a', '--merge']) == 0 and (tmp_path/'a'/'config.json').exists()
    assert main(['export', root, '--all', '--to', f'{tmp_path}/b']) == 0 and 'vllm serve ./base' in capsys.readouterr().out
    a,c = ['--to', f'{tmp_path}/a'],['--to', f'{tmp_path}/c']
    for argv,field in ((['--client','1',*a], 'to'), (['--client','9',*c], 'client'), (['--all','--merge',*c], 'merge'),
                       (['--all','--client','1',*c], 'client'), (['--client','1','--push','me/x',*c], 'push')):
        assert main(['export', root, *argv]) == 2
        assert capsys.readouterr().err.startswith(f'fedai: `{field}`: expected ')
    assert main(['chat', str(tmp_path)]) == 2 and not (tmp_path/'c').exists()

# trackers

def test_a_run_is_tracked(make_cfg):
    from accelerate.tracking import GeneralTracker
    class Kept(GeneralTracker):
        name,requires_logging_directory,main_process_only,tracker = 'kept',False,False,None
        def start(self): self.seen,self.done = [],0
        def store_init_configuration(self, values): self.config = values
        def log(self, values, step=None, **kwargs): self.seen.append((step, values))
        def finish(self): self.done += 1
    kept = Kept()
    cfg = make_cfg(graph='complete', eval_every=1)
    s = get_server(cfg, named_data(), callbacks=[Trackers([kept], most=2)])
    history = s.fit()
    assert [t for t,_ in kept.seen] == [1,2] and kept.done == 1
    assert kept.config['lr'] == cfg.lr and kept.config['target_modules'] == '["q_proj", "v_proj"]'
    assert all(isinstance(v, (str,int,float)) for v in kept.config.values())
    for r,(_,v) in zip(history, kept.seen):
        got = v['loss'],v['test loss'],v['pull'],v['loss of a client/ward 0'],v['test loss of a client/ward 3']
        assert got == (r['mean_loss'], r['mean_test_loss'], r['pull']['mean'], r['loss']['0'], r['test_loss']['3'])
        assert len([k for k in v if '/' in k]) == 4 and v['peak memory in MB'] > 1
        assert v['tokens per second'] == pytest.approx(r['tokens']/v['seconds'])
    files = {o.stat().st_ino: o.stat().st_size for o in Path(cfg.output_dir).rglob('adapter_model.safetensors')}
    assert kept.seen[-1][1]['rows on disk in MB'] == pytest.approx(sum(files.values())/2**20)
    untracked = get_server(make_cfg(graph='complete', eval_every=1), named_data(), callbacks=[])
    assert untracked.fit() == history

def test_trackers_that_are_not_there(make_cfg, capsys):
    with pytest.raises(ConfigError, match="`track`: expected names among .*did you mean 'mlflow'.*got 'mlfow'"): Trackers(['mlfow'])
    with pytest.raises(ConfigError, match='`track`: expected names among'): Trackers([['wandb']])
    with patch('accelerate.tracking.get_available_trackers', lambda: []):
        for name,pip in (('tensorboard', r"'fedai\[track\]'"), ('wandb','wandb'), ('comet_ml','comet-ml')):
            with pytest.raises(ConfigError, match=rf'`track`: expected trackers that are installed \(pip install {pip}\)'): Trackers([name])
        cfg = make_cfg()
        assert main(['run', '--model', 'tiny', '--track', '[wandb]', '--output_dir', cfg.output_dir]) == 2
        with pytest.raises(ConfigError, match='pip install wandb'):
            compare(cfg.replace(track=['wandb']), ('local',), (0,), data=lambda cfg: pytest.fail('the data was read'))
    assert 'pip install wandb' in capsys.readouterr().err and not Path(cfg.output_dir).exists()

def test_a_tracker_of_ones_own_is_imported_first(make_cfg, tmp_path, capsys):
    (tmp_path/'mine.py').write_text("""
from accelerate.tracking import GeneralTracker, LOGGER_TYPE_TO_CLASS
class Told(GeneralTracker):
    name,requires_logging_directory,tracker = 'told',False,None
    def __init__(self, run_name, **kwargs): super().__init__()
    def log(self, values, step=None, **kwargs): print('told', step, values['clients'])
LOGGER_TYPE_TO_CLASS['told'] = Told
""")
    (tmp_path/'ok.jsonl').write_text('\n'.join(json.dumps(o) for o in sums(0, 40)))
    assert main(['run', '--model', 'tiny', '--device', 'cpu', '--data', str(tmp_path/'ok.jsonl'), '--partition', 'iid',
                 '--num_clients', '2', '--rounds', '2', '--local_step', '1', '--max_new_tokens', '2', '--graph', 'complete',
                 '--track', '[told]', '--imports', f"[{tmp_path/'mine.py'}]", '--output_dir', str(tmp_path/'run')]) == 0
    def told(): return [o for o in capsys.readouterr().out.splitlines() if o.startswith('told')]
    assert told() == ['told 1 2.0','told 2 2.0']
    # in a comparison each run, and in Python any server that isn't given callbacks
    both = ['--algorithms', 'local,fedavg', '--seeds', '0', '--output_dir', str(tmp_path/'both')]
    assert main(['compare', str(tmp_path/'run'/'config.yaml'), *both]) == 0
    assert told() == ['told 1 2.0','told 2 2.0']*2
    rounds = []
    class Mine(Callback):
        def after_round(self, server, record): rounds.append(record['round'])
    cfg = make_cfg(rounds=1, track=['told'], output_dir=str(tmp_path/'compared'))
    compare(cfg, ('local',), (0,), data=lambda cfg: client_data(4), callbacks=[Mine()])
    assert told() == ['told 1 4.0'] and rounds == [0]   # one's own callbacks come beside it
    for callbacks,n in ((None,2),([],0)):
        get_server(make_cfg(rounds=2, track=['told'], output_dir=str(tmp_path/f'python_{n}')), client_data(4), callbacks=callbacks).fit()
        assert len(told()) == n
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS
    del LOGGER_TYPE_TO_CLASS['told']

def test_a_tracker_that_is_not_there_from_a_process_of_its_own(make_cfg, tmp_path):
    "Where nothing has made accelerate's state before."
    code = ("import importlib.util, sys; find = importlib.util.find_spec; "
            "importlib.util.find_spec = lambda n, *a: None if n == 'wandb' else find(n, *a); "
            "from fedai.cli import main; sys.exit(main(['run', '--track', '[wandb]', '--output_dir', sys.argv[1]]))")
    env = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[1])}
    r = subprocess.run([sys.executable, '-c', code, str(tmp_path/'run')], capture_output=True, text=True, env=env)
    want = "fedai: `track`: expected trackers that are installed (pip install wandb), got 'wandb'\n"
    assert (r.returncode, r.stderr) == (2, want), r.stderr

def test_tensorboard(make_cfg):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    cfg = make_cfg(graph='complete')
    s = get_server(cfg, named_data(), callbacks=[Trackers(['tensorboard'])])
    history = s.fit()
    found = EventAccumulator(str(Path(cfg.output_dir)/'track'/'fedai')).Reload()
    assert [(e.step, e.value) for e in found.Scalars('loss')] == [(r['round']+1, pytest.approx(r['mean_loss'])) for r in history]
    assert [e.value for e in found.Scalars('loss of a client/ward 1')] == [pytest.approx(r['loss']['1']) for r in history]
