"Every mistake gets an error before training that names field, wanted and got, and leaves nothing half-made."
import subprocess, sys
import numpy as np, pytest, torch
from pathlib import Path
from conftest import client_data, sums
from fedai.algorithms import get_server
from fedai.clients import Client_mira
from fedai.config import ConfigError, FedConfig
from fedai.data.prompts import DataError
from fedai.models import get_model, get_tokenizer
from fedai.servers import BaseServer, Server_mira
from fedai.store.adapters import AdapterStore
from fedai.store.rows import StoreError
from fedai.evaluate.tracking import Callback
from fedai.train.local import NonFiniteLoss

@pytest.mark.parametrize('fields,message', [
    (dict(lamda_=1), r"`lamda_`: expected a known field \(did you mean 'lambda_'\?\), got 1"),
    (dict(local_steps=1), r"did you mean 'local_step'\?"),
    (dict(lr=0), "`lr`: expected a value above 0, got 0"),
    (dict(lr='fast'), "`lr`: expected a number, got 'fast'"),
    (dict(m=0), "`m`: expected a value above 0, got 0"),
    (dict(m=1.1), "`m`: expected at most 1, got 1.1"),
    (dict(num_clients=0), "`num_clients`: expected at least 1, got 0"),
    (dict(num_clients=True), "`num_clients`: expected an integer or nothing, got True"),
    (dict(rounds=-1), "`rounds`: expected at least 0, got -1"),
    (dict(lambda_=-.1), "`lambda_`: expected at least 0, got -0.1"),
    (dict(coupling=1.5), "`coupling`: expected at most 1, got 1.5"),
    (dict(lambda_=.1, coupling=.1), "`coupling`: expected nothing beside `lambda_`"),
    (dict(grad_clip=float('inf')), "`grad_clip`: expected a finite number, got inf"),
    (dict(engine='batch'), "`engine`: expected one of 'auto', 'batched', 'sequential'"),
    (dict(device='gpu'), "`device`: expected 'auto', 'cpu', 'cuda'"),
    (dict(adapt_layers='first:2'), "`adapt_layers`: expected 'all', 'last:n'"),
    (dict(tasks=['gcd']), r"`tasks`: expected a mapping, got \['gcd'\]"),
    (dict(server_optimizer='adm'), r"`server_optimizer`: expected one of 'none', 'momentum', .* \(did you mean 'adam'\?\)"),
    (dict(server_lr=1.), "`server_lr`: expected nothing with `server_optimizer: none`, got 1.0"),
    (dict(server_optimizer_args={'beta1': .9}), "`server_optimizer_args`: expected nothing with `server_optimizer: none`"),
    (dict(server_optimizer='adam', server_lr=0), "`server_lr`: expected a value above 0, got 0"),
    (dict(server_optimizer='adam', server_optimizer_args={'beta3': .9}),
     r"settings of adam, which has beta1, beta2, tau \(did you mean 'beta"),
    (dict(server_optimizer='momentum', server_optimizer_args={'tau': .1}), "settings of momentum, which has beta1"),
    (dict(server_optimizer='adagrad', server_optimizer_args={'beta2': .9}), "settings of adagrad, which has beta1, tau"),
    *[(dict(server_optimizer='yogi', server_optimizer_args={k: v}), f"`server_optimizer_args: {k}`: expected a number")
      for k,v in [('beta1',1),('beta1',-.1),('beta2',float('nan')),('beta2',True),('tau',0),('tau',float('inf')),('tau','x')]],
    (dict(seed=None), "`seed`: expected an integer, got None"),
])
def test_config(fields, message):
    with pytest.raises(ConfigError, match=message): FedConfig(**fields)

def graph(bad):
    A = np.ones((4,4)) - np.eye(4)
    return {'size': A[:3,:3], 'flat': A[0], 'negative': -A, 'nan': A*np.nan, 'directed': np.triu(A), 'diagonal': A + np.eye(4),
            'text': [['a','b']], 'ragged': [[0,1],[1]]}[bad]

BAD_GRAPHS = dict(size='a square array', flat='a square array', negative='weights of at least 0', nan='finite weights',
                  directed='a symmetric array', diagonal='zeros on the diagonal', text=r'a \(4, 4\) array of numbers',
                  ragged=r'a \(4, 4\) array of numbers')

def with_data(**changes):
    data = client_data(4)
    for k,v in changes.items(): data[int(k[1])][k[3:]] = v
    return data

@pytest.mark.parametrize('data,kw,fields,error,message', [
    (client_data(3), {}, {}, ConfigError, "`num_clients`: expected 3, the length of lst_data_dict, got 4"),
    (with_data(k2_train=[]), {}, {}, ConfigError, r"`lst_data_dict\[2\]\['train'\]`: expected at least one example, got '0 examples'"),
    (with_data(k1_test=[]), {}, {}, ConfigError, r"`lst_data_dict\[1\]\['test'\]`: expected at least one example"),
    ([{'train': sums(0)}]*4, {}, {}, ConfigError, r"`lst_data_dict\[0\]`: expected a dict with 'train' and 'test', got \['train'\]"),
    ([sums(0)]*4, {}, {}, ConfigError, r"`lst_data_dict\[0\]`: expected a dict with 'train' and 'test', got 'list'"),
    *[(None, dict(graph=graph(b)), {}, ConfigError, f'`graph`: expected {w}') for b,w in BAD_GRAPHS.items()],
    (None, {}, dict(graph='nowhere.npy'), ConfigError,
     "`graph`: expected 'random', 'tasks', 'complete', 'ring', 'erdos_renyi', 'learned' or a readable .npy file"),
    (None, {}, dict(graph='learnt'), ConfigError, r"`graph`: expected .* \(did you mean 'learned'\?\)"),
    (None, {}, dict(lambda_=1e6), ConfigError, r"`lambda_`: expected ηλ·λ_max\(L\) below 2 .* got '2000 x .* = "),
    (None, {}, dict(target_modules=['q_proj','nose']), ConfigError,
     "`target_modules`: expected names of layers in the model, such as .*'q_proj'.*, got 'nose'"),
    (None, {}, dict(target_modules=[]), ConfigError, "`target_modules`"),
    (None, {}, dict(target_modules='[bad'), ConfigError, "`target_modules`"),
    (None, {}, dict(target_modules='all-linear', adapt_layers='last:1'), ConfigError,
     "`adapt_layers`: expected 'all' where `target_modules` is a text .* got 'last:1'"),
    (None, {}, dict(selection='availability', selection_args={'available': [[1,0,1],[1,1,1]]}), ConfigError,
     "`selection_args: available`: expected 4 values in each line, one a client, got 3"),
    (None, {}, dict(selection='power_of_choice', selection_args={'d': 9}), ConfigError,
     "`selection_args: d`: expected from 4 .* to 4 candidates, got 9"),
    (None, {}, dict(graph='erdos_renyi', graph_args={'p': 2}), ConfigError, "`graph_args: p`: expected a probability, 0 to 1, got 2"),
    (None, {}, dict(adapt_layers='last:9'), ConfigError, "`adapt_layers`: expected at most last:2"),
    (None, {}, dict(model='./nowhere'), ConfigError, "`model`: expected an existing folder"),
    (None, {}, dict(model='nowhere.gguf'), ConfigError, "`model`: expected an existing .gguf file"),
    (None, {}, dict(model='hf://no/such-model'), ConfigError, "`model`: expected a model that transformers can load"),
    (None, {}, dict(optimizer='AdamX'), ConfigError, "`optimizer`: expected one of .*'AdamX'"),
    (None, {}, dict(optimizer_args={'momentum': 2}), ConfigError, "`optimizer_args`"),
    (None, {}, dict(device='cuda:7'), ConfigError, "`device`: expected a device of this machine"),
])
def test_server(make_cfg, data, kw, fields, error, message):
    cfg = make_cfg(**fields)
    with pytest.raises(error, match=message): Server_mira(cfg, data or client_data(4), callbacks=[], **kw)
    assert not Path(cfg.output_dir).exists()

def test_unreadable_gguf(make_cfg, tmp_path):
    p = tmp_path/'broken.gguf'
    p.write_bytes(b'GGUF' + bytes(100))
    with pytest.raises(ConfigError, match='`model`: expected a GGUF file that transformers can read'): get_tokenizer(make_cfg(model=str(p)))

@pytest.mark.parametrize('bad,message', [
    (dict(instruction='x', output=''), '`output` is empty'), (dict(instruction='x'), '`output` must be text, got None'),
    (dict(instruction=3, output='x'), '`instruction` must be text, got 3'), ('text', 'expected a dict'),
    (dict(instruction='x', output='y'*600), 'the answer has 601 tokens')])
def test_a_bad_example_is_named(make_cfg, bad, message):
    data = client_data(4)
    data[2]['train'][5] = bad
    cfg = make_cfg()
    with pytest.raises(DataError, match=f'client 2, train example 5: {message}'): Server_mira(cfg, data, callbacks=[]).fit()
    assert not Path(cfg.output_dir).exists() or AdapterStore(cfg.output_dir).round == 0

def test_a_test_example_that_does_not_fit_is_found_before_its_client_trains(make_cfg):
    data = client_data(4)
    data[0]['test'][1] = dict(instruction='x', output='y'*600)
    s = Server_mira(make_cfg(), data, callbacks=[])
    with pytest.raises(DataError, match='client 0, test example 1: the answer has 601 tokens'): s.fit()
    assert s.store.round == 0 and not s.store.trained(1)

def test_too_long_is_dropped_when_asked_and_counted(make_cfg):
    data = client_data(4)
    data[2]['train'][5] = dict(instruction='x', output='y'*600)
    data[1]['train'] = [dict(instruction='x', output='y'*600)]
    s = Server_mira(make_cfg(on_bad='drop', m=.1, rounds=1), data, callbacks=[])
    with pytest.warns(UserWarning, match='client 2, train: 1 examples dropped and 0 prompts cut'):
        assert s.client_list[2].train_data.dropped == 1
    with pytest.raises(DataError, match='client 1: none of its 1 train examples fits'): s.client_list[1].train_data

def test_a_loss_that_breaks_stops_the_run_by_name(make_cfg):
    class Breaks(Client_mira):
        round,broken = None,True
        def train(self, comm_round):
            self.round = comm_round
            return super().train(comm_round)
        def penalty(self, sent):
            steps = iter(range(100))
            return lambda named: torch.tensor(float('inf') if (self.id,self.round,next(steps)) == (2,1,1) and self.broken else 0.)
    s = Server_mira(make_cfg(rounds=3), client_data(4), None, None, Breaks, callbacks=[])
    with pytest.raises(NonFiniteLoss, match='client 2, round 1, step 1: the loss is inf'): s.fit()
    assert s.store.round == 1 and len(s.store.history()) == 1
    Breaks.broken = False
    again = Server_mira(s.cfg, client_data(4), None, None, Breaks, callbacks=[])
    assert again.store.round == 1 and list(again.store.trained(2)) == [0,1]   # their training was finished
    assert len(again.fit()) == 3

def test_folder_of_another_run(make_cfg, tmp_path):
    cfg = make_cfg(rounds=1)
    Server_mira(cfg, client_data(4), callbacks=[]).fit()
    before = {o: o.read_bytes() for o in Path(cfg.output_dir).rglob('*') if o.is_file()}
    for change,message in ((dict(lr=.5), '`lr`: expected 0.001, as in the run in'),
                           (dict(seed=3), '`seed`: expected 0'),
                           (dict(r=2), '`r`: expected 4'),
                           (dict(resume=False), '`output_dir`: expected a folder without a run')):
        with pytest.raises(ConfigError, match=message): Server_mira(cfg.replace(**change), client_data(4), callbacks=[])
    other = get_model(cfg.replace(seed=9))
    with pytest.raises(StoreError, match='began from other weights'):
        Server_mira(cfg.replace(rounds=9), client_data(4), other, callbacks=[])
    base = get_model(cfg)
    with torch.no_grad(): base.get_base_model().model.layers[0].mlp.up_proj.weight.add_(1)
    with pytest.raises(ConfigError, match='`base_model`: expected .*, as in the run'): Server_mira(cfg, client_data(4), base, callbacks=[])
    with pytest.raises(ConfigError, match="`server`: expected 'Server_mira', as in the run in .* got 'BaseServer'"):
        BaseServer(cfg, client_data(4), callbacks=[])
    class Other(Client_mira): pass
    with pytest.raises(ConfigError, match="`client`: expected 'Client_mira'"):
        Server_mira(cfg, client_data(4), None, None, Other, callbacks=[])
    data = client_data(4)
    data[1]['train'] = sums(9)
    s = Server_mira(cfg.replace(rounds=2), data, callbacks=[])
    with pytest.raises(ConfigError, match=r"`lst_data_dict\[1\]\['train'\]`: expected the data of the run in"): s.fit()
    now = {o: o.read_bytes() for o in Path(cfg.output_dir).rglob('*') if o.is_file()}
    for o in before: assert o.name == 'config.yaml' or now[o] == before[o]
    mine = tmp_path/'mine'
    (mine/'7').mkdir(parents=True)
    (mine/'7'/'thesis.txt').write_text('all my work')
    with pytest.raises(ConfigError, match='`output_dir`: expected a new folder or one of a run'):
        Server_mira(make_cfg(output_dir=str(mine)), client_data(4), callbacks=[])
    assert (mine/'7'/'thesis.txt').read_text() == 'all my work'

@pytest.mark.parametrize('name', ['config.yaml','history.jsonl','0','3','scorecard.json','names.json'])
def test_files_of_somebody_else_are_never_touched(make_cfg, tmp_path, name):
    p = tmp_path/'mine'/name
    p.parent.mkdir()
    if name.isdecimal():
        p.mkdir()
        p = p/'thesis.txt'
    p.write_text('all my work')
    with pytest.raises(ConfigError, match='`output_dir`: expected a new folder or one of a run'):
        Server_mira(make_cfg(output_dir=str(tmp_path/'mine')), client_data(4), callbacks=[])
    assert p.read_text() == 'all my work'
    assert {o.name for o in (tmp_path/'mine').iterdir()} == {'.lock', name}

def test_changed_data_is_trained_on_after_a_stop_in_the_first_round(make_cfg):
    a,b = make_cfg(rounds=1),make_cfg(rounds=1)
    data = client_data(4)
    class Stop(Callback):
        def after_client(self, server, comm_round, id, metrics): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): Server_mira(a, data, callbacks=[Stop()]).fit()
    data[0]['train'] = sums(9)
    s,fresh = [Server_mira(c, data, callbacks=[]) for c in (a,b)]
    assert list(s.store.trained(1)) == [0]
    assert s.fit() == fresh.fit()

@pytest.mark.parametrize('name,args', [('LBFGS',{}), ('SparseAdam',{}), ('AdamW',dict(fused=True, foreach=True)),
                                       ('Adam',dict(betas=[2,2]))])
def test_optimisers_that_cannot_take_part(make_cfg, name, args):
    with pytest.raises(ConfigError, match='`optimizer'):
        Server_mira(make_cfg(optimizer=name, optimizer_args=args), client_data(4), callbacks=[])

OPTIMIZERS = {n for n,o in vars(torch.optim).items() if isinstance(o, type) and issubclass(o, torch.optim.Optimizer)}

@pytest.mark.parametrize('name', sorted(OPTIMIZERS - {'Optimizer','LBFGS','SparseAdam'}))
def test_every_other_optimiser_of_torch_does(make_cfg, name):
    s = Server_mira(make_cfg(optimizer=name, rounds=1, num_clients=1, local_step=1), client_data(1), callbacks=[])
    assert np.isfinite(s.fit()[0]['mean_loss'])

def test_an_output_folder_that_cannot_be(make_cfg, tmp_path):
    (tmp_path/'file').write_text('')
    for p in (tmp_path/'file', tmp_path/'file'/'x', Path('/proc/x')):
        with pytest.raises(ConfigError, match='`output_dir`: expected a folder that can be written'):
            Server_mira(make_cfg(output_dir=str(p)), client_data(4), callbacks=[])
    with pytest.raises(ConfigError, match='`output_dir`: expected the name of a folder'): make_cfg(output_dir=' ')

def test_a_name_that_another_algorithm_has():
    from fedai.servers import algorithm_classes
    with pytest.raises(ConfigError, match='`name`: expected one that no other algorithm has .*Server_mira.* got .mira.'):
        type('Mine', (BaseServer,), {}, name='mira')
    assert algorithm_classes['mira'] is Server_mira
    def cell():   # which is run again in a notebook
        class Mine(BaseServer, name='mine'): pass
        return Mine
    try:
        cell()
        again = cell()
        assert algorithm_classes['mine'] is again
    finally: algorithm_classes.pop('mine', None)

@pytest.mark.parametrize('kw,message', [
    (dict(grpah=np.ones((4,4))), r"`grpah`: expected an attribute such as .* \(did you mean 'graph'\?\)"),
    (dict(send=3), '`send`: expected an attribute'),
    (dict(rounds=9), r'`rounds`: expected it in the config \(`cfg.replace\(rounds=...\)`\), got 9'),
    (dict(holdout_ds=[]), '`holdout_ds`: expected at least one example')])
def test_arguments_of_the_server(make_cfg, kw, message):
    with pytest.raises(ConfigError, match=message): Server_mira(make_cfg(), client_data(4), callbacks=[], **kw)
    with pytest.raises(ConfigError, match='`cfg`: expected a FedConfig'): Server_mira(dict(lr=1), client_data(4))
    with pytest.raises(ConfigError, match=r"`lst_data_dict\[0\]\['train'\]`: expected a list or dataset"):
        Server_mira(make_cfg(), [{'train': iter(sums(0)), 'test': sums(0)}]*4, callbacks=[])

@pytest.mark.parametrize('M,message', [(np.full((4,4), np.nan), 'with NaN or infinity'),
                                       (None, r'got None \(is there a `return`\?\)'),
                                       (np.eye(3), r'got shape \(3, 3\)')])
def test_a_mixing_matrix_that_is_none(make_cfg, M, message):
    class Server(Server_mira):
        def mixing_matrix(self, ids, comm_round): return M if hasattr(self, 'store') else super().mixing_matrix(ids, comm_round)
        def check(self): pass
    s = Server(make_cfg(), client_data(4), callbacks=[])
    with pytest.raises(ValueError, match=r'Server.mixing_matrix: expected a .*\(4, 4\) array.*' + message): s.fit()
    assert s.store.round == 0 and not list(Path(s.cfg.output_dir).rglob('local_output_*'))

def test_a_tokenizer_without_a_pad_token_pads_by_length(make_cfg):
    a,b = get_tokenizer(make_cfg()),get_tokenizer(make_cfg())
    b.pad_token = None
    x,y = [Server_mira(make_cfg(rounds=1), client_data(4), callbacks=[], tokenizer=t) for t in (a,b)]
    assert x.fit()[0]['loss'] == y.fit()[0]['loss']

def test_a_damaged_state_is_found_at_load(make_cfg):
    cfg = make_cfg(rounds=1)
    s = Server_mira(cfg, client_data(4), callbacks=[])
    s.fit()
    p = s.store.path(2)/'adapter_model.safetensors'
    p.write_bytes(p.read_bytes()[:-5])
    with pytest.raises(StoreError, match=r'local_output_2/adapter_model.safetensors: expected \d+ bytes'): s.send(s.client_list[2])
    p.unlink()
    with pytest.raises(StoreError, match='local_output_2/adapter_model.safetensors: not there'): s.send(s.client_list[2])

def test_tokenizer_larger_than_a_finished_model(make_cfg):
    cfg = make_cfg(num_clients=4)
    tok,model = get_tokenizer(cfg),get_model(cfg)
    tok.add_tokens(['<new>'])
    with pytest.raises(ConfigError, match='`tokenizer`: expected at most 261 tokens'):
        Server_mira(cfg, client_data(4), model, callbacks=[], tokenizer=tok)

def test_peft_methods_without_plain_weights_are_refused(make_cfg):
    from peft import LoraConfig, PromptTuningConfig, get_peft_model
    from fedai.models import get_base_model
    cfg = make_cfg()
    prompt = get_peft_model(get_base_model(cfg), PromptTuningConfig(task_type='CAUSAL_LM', num_virtual_tokens=4))
    two = get_model(cfg)
    two.add_adapter('second', LoraConfig(r=2, target_modules=['q_proj']))
    for model in (prompt,two):
        with pytest.raises(ConfigError, match='`model`: expected a PEFT model with one adapter'):
            Server_mira(cfg, client_data(4), model, callbacks=[])

def test_untied_model_with_new_tokens_is_refused(make_cfg):
    from transformers import LlamaConfig, LlamaForCausalLM
    from fedai.models import add_lora
    cfg = make_cfg(add_tokens=['<new>'])
    model = LlamaForCausalLM(LlamaConfig(vocab_size=262, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                                         num_key_value_heads=2, tie_word_embeddings=False))
    with pytest.raises(ConfigError, match='`add_tokens`: expected none for a model whose output layer is not tied'):
        add_lora(model, cfg, get_tokenizer(cfg))

def test_sequences_longer_than_a_model_has_positions(make_cfg):
    from transformers import GPT2Config, GPT2LMHeadModel
    shape = GPT2Config(vocab_size=261, n_embd=16, n_layer=1, n_head=2, n_positions=64, eos_token_id=1, bos_token_id=1)
    short = lambda: GPT2LMHeadModel(shape)
    cfg = make_cfg(target_modules=['c_attn'], rounds=1, max_new_tokens=60)
    with pytest.raises(ConfigError, match='`max_length`: expected at most 64, the positions that the model has, got 512'):
        Server_mira(cfg, client_data(4), short(), callbacks=[])
    assert not Path(cfg.output_dir).exists()
    s = Server_mira(cfg.replace(max_length=64), client_data(4), short(), callbacks=[])
    s.fit()
    assert set(s.test()) == set(range(4))   # answers end where the positions do

def test_a_tokenizer_that_ends_nothing_is_named_shortly(make_cfg):
    tok = get_tokenizer(make_cfg())
    tok.eos_token = None
    with pytest.raises(ConfigError, match='`tokenizer`: expected one with an end-of-sequence token') as e:
        Server_mira(make_cfg(), client_data(4), tokenizer=tok, callbacks=[])
    assert len(str(e.value)) < 150

@pytest.mark.parametrize('argv,code,message', [
    (['run', 'nowhere.yaml'], 2, "fedai: `config`: expected a YAML file, got 'nowhere.yaml'"),
    (['run', '--num_clients', 'many'], 2, "fedai: `num_clients`: expected an integer or nothing, got 'many'"),
    (['run', '--tasks', '{a: [}'], 2, 'fedai: `tasks`: expected a YAML value ('),
    (['run', '--data', 'nowhere', '--output_dir', 'out'], 2,
     "fedai: `data`: expected 'reasoning-gym', a file or folder that is there, or a Hugging Face dataset"),
    (['run', '--lrr', '1'], 2, "fedai: `--lrr`: expected a known option (did you mean '--lr'?)"),
    ([], 2, 'command')])
def test_command_line(argv, code, message, tmp_path):
    r = subprocess.run([str(Path(sys.executable).parent/'fedai'), *argv], cwd=tmp_path, capture_output=True, text=True)
    assert r.returncode == code and message in r.stderr and 'Traceback' not in r.stderr, r.stderr
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('said,message', [
    ([[0,0,1]], r'in round 0 a list of different clients from 0 to 3, got \[0, 0, 1\]'), ([[0],[4]], r'in round 1 .*, got \[4\]'),
    ([[-1]], 'in round 0'), ([[]], 'in round 0'), ([0,1], 'in round 0 .*, got 0'), ([[.5]], 'in round 0'),
    ([], 'a list of clients for round 0')])
def test_a_selection_of_ones_own_that_is_none(make_cfg, said, message):
    class Own(BaseServer):
        def client_selection(self): return said
    cfg = make_cfg()
    with pytest.raises(ConfigError, match='`client_selection`: expected ' + message): Own(cfg, client_data(4), callbacks=[])
    assert not Path(cfg.output_dir).exists()

def test_a_selection_of_ones_own_may_be_numpy_s(make_cfg):
    class Own(BaseServer):
        def client_selection(self): return [np.array([2,0]), [np.int64(1)]]
    assert [r['selected'] for r in Own(make_cfg(rounds=2), client_data(4), callbacks=[]).fit()] == [[0,2],[1]]

@pytest.mark.parametrize('kw,message', [
    (dict(callbacks=Callback()), '`callbacks`: expected a list of `Callback`s'),
    (dict(callbacks=[Callback]), '`callbacks`'),
    (dict(callbacks=[print]), '`callbacks`'),
    (dict(model='tiny'), "`model`: expected a module, or None .*, got 'tiny'"),
    (dict(client_class='Client_mira'), "`client_class`: expected a subclass of BaseClient, got 'Client_mira'"),
    (dict(client_class=Callback), '`client_class`: expected'),
    (dict(cfg=dict(model='tiny')), '`cfg`: expected'),
    (dict(lst_data_dict=None), '`lst_data_dict`: expected a list .*, got None'),
    (dict(lst_data_dict=iter(client_data(4))), '`lst_data_dict`'),
    (dict(cfg=None), '`cfg`: expected a FedConfig, got None'),
    (dict(tokenizer='tiny'), "`tokenizer`: expected a transformers tokenizer, got 'tiny'"),
    (dict(model=torch.nn.Linear(1, 1), criterion=torch.nn.MSELoss(reduction='sum')),
     "`criterion`: expected one with reduction='mean', got 'sum'")])
def test_arguments_of_another_type(make_cfg, kw, message):
    cfg = make_cfg()
    with pytest.raises(ConfigError, match=message): get_server(**{**dict(cfg=cfg, lst_data_dict=client_data(4)), **kw})
    assert not Path(cfg.output_dir).exists()

def test_a_server_that_was_not_made_can_be_shown(make_cfg):
    with pytest.raises(ConfigError) as e: Server_mira(make_cfg(), client_data(4), callbacks=[], graph='nowhere.npy')
    assert {repr(o.locals['self']) for o in e.traceback if isinstance(o.locals.get('self'), BaseServer)} == {'Server_mira: not made yet'}
    with pytest.raises(ConfigError) as e: Server_mira(make_cfg(num_clients=3), client_data(4), callbacks=[])
    assert 'Server_mira: not made yet' in [repr(o.locals.get('self')) for o in e.traceback]

@pytest.mark.parametrize('what', ['trained_tensors','kept_tensors'])
def test_tensors_that_a_row_does_not_have(make_cfg, what):
    Own = type('Own', (BaseServer,), {what: lambda self, comm_round: {'lora_B'}})
    cfg = make_cfg()
    with pytest.raises(ConfigError, match=f"`{what}`: expected names of tensors of a row.*, got 'lora_B'"):
        Own(cfg, client_data(4), callbacks=[])
    assert not Path(cfg.output_dir).exists()

def test_a_transformers_model_that_an_earlier_server_put_a_lora_on(make_cfg):
    model = get_model(make_cfg()).unload()
    assert Server_mira(make_cfg(r=4), client_data(4), model, callbacks=[]).live.tensors
    cfg = make_cfg(r=8)
    with pytest.raises(ConfigError, match='`model`: expected a transformers model without a LoRA'):
        Server_mira(cfg, client_data(4), model, callbacks=[])
    assert not Path(cfg.output_dir).exists()

@pytest.mark.parametrize('out', [None, 1., {}, {'loss': float('nan')}, {'loss': np.float32(1)}, {'loss': torch.tensor(1.)}])
def test_a_train_of_ones_own_that_reports_no_loss(make_cfg, out):
    Own = type('Own', (Client_mira,), dict(train=lambda self, comm_round: out))
    with pytest.raises(ValueError, match='client 0: Own.train: expected a dict whose `loss` is a finite number'):
        Server_mira(make_cfg(), client_data(4), client_class=Own, callbacks=[]).fit()
