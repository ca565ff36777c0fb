"The embedded language model, end to end; slow."
import pytest, torch
from pathlib import Path
from peft import PeftModel
from fedai.config import load_config
from fedai.data.clients import get_client_data
from fedai.models import get_base_model, get_tokenizer
from fedai.servers import Server_mira

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent

def same_logits(server, cfg):
    "Every state of a run, loaded by peft on one base model, against the server's own."
    tok = get_tokenizer(cfg)
    ids = torch.tensor([tok('State the final answer to the following arithmetic problem: 3 + 4 =').input_ids])
    model,seen = None,0
    for f in sorted(Path(cfg.output_dir).glob('*/local_output_*')):
        i,r = int(f.name.rsplit('_', 1)[1]),int(f.parent.name)
        if model is None: model = PeftModel.from_pretrained(get_base_model(cfg), f, adapter_name=f'{r}-{i}')
        else: model.load_adapter(f, adapter_name=f'{r}-{i}')
        model.set_adapter(f'{r}-{i}')
        server.live.load(server.store.load_row(i, r))
        with torch.no_grad(): torch.testing.assert_close(model.eval()(ids).logits, server.model.eval()(ids).logits, rtol=0, atol=0)
        seen += 1
    return seen

def test_a_short_run_learns_and_peft_loads_it(tmp_path):
    cfg = load_config(ROOT/'configs'/'demo.yaml', output_dir=str(tmp_path/'run'), num_clients=2, clients_per_task=1, rounds=2, local_step=3,
                      train_size=12, test_size=4,
                      tasks={'products': dict(min_terms=2, max_terms=2, min_digits=1, max_digits=1),
                             'gcd': dict(min_value=2, max_value=12)})
    s = Server_mira(cfg, get_client_data(cfg), callbacks=[])
    s.fit()
    s.test(baselines=True)
    assert s.scorecard['mean']['loss'] < .5*s.scorecard['base']['mean']['loss']
    assert same_logits(s, cfg) == 4

@pytest.mark.skipif(not (ROOT/'runs'/'demo'/'scorecard.json').exists(), reason='needs the run that `make demo` leaves')
def test_the_demo_left_what_it_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    cfg = load_config('configs/demo.yaml')
    s = Server_mira(cfg, get_client_data(cfg), callbacks=[])
    assert s.store.round == cfg.rounds and s.store.check() == []
    assert same_logits(s, cfg) == 8*cfg.keep_rounds

def test_a_four_bit_base(make_cfg):
    "NF4: the base keeps its bits, clients train together as they do one by one, and the loss falls."
    pytest.importorskip('bitsandbytes')
    from conftest import client_data
    moves = []
    for engine in ('batched','sequential'):
        s = Server_mira(make_cfg(model='smollm2', dtype='4bit', engine=engine, rounds=1, local_step=3, lr=.05, optimizer='SGD',
                                 num_clients=2), client_data(2), callbacks=[])
        base = s.model.get_base_model()
        assert type(base.model.layers[0].self_attn.k_proj).__name__ == 'Linear4bit' and base.get_memory_footprint() < 250e6
        frozen,c = s.live.frozen_checksum(),s.client_list[0]
        start,before = s.store.load_row(0, 0),s.task.mean_losses(s.live, {0: c.train_data})[0]
        s.fit()
        s.send(c)
        assert s.live.frozen_checksum() == frozen and s.task.mean_losses(s.live, {0: c.train_data})[0] < before
        moves.append(s.store.load_row(0).view(torch.float32) - start.view(torch.float32))
    assert torch.nn.functional.cosine_similarity(*moves, dim=0) > .999

@pytest.mark.parametrize('layers', ['all','last:10'])
def test_together_equals_one_by_one(make_cfg, layers):
    from conftest import client_data
    moves = []
    for engine in ('batched','sequential'):
        s = Server_mira(make_cfg(model='smollm2', engine=engine, adapt_layers=layers, rounds=1, local_step=3, lr=.05, optimizer='SGD',
                                 num_clients=3), client_data(3), callbacks=[])
        s.fit()
        moves.append([s.store.load_row(k).view(torch.float32) - s.store.load_row(k, 0).view(torch.float32) for k in range(3)])
        moves[-1].append([m['loss'] for m in s.test().values()])
    for a,b in zip(*moves[:2]):
        if isinstance(a, list): assert a == pytest.approx(b, rel=1e-4)
        else: assert (a - b).abs().max() < 1e-3*a.abs().max()
