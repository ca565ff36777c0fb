"The embedded language model, end to end; slow."
import pytest, torch
from pathlib import Path
from peft import PeftModel
from fedai.config import FedConfig, load_config
from fedai.data import get_client_data
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
    cfg = load_config(ROOT/'configs'/'demo.yaml', output_dir=str(tmp_path/'run'), num_clients=2, clients_per_task=1, rounds=2, local_step=3, train_size=12, test_size=4,
                      tasks={'products': dict(min_terms=2, max_terms=2, min_digits=1, max_digits=1), 'gcd': dict(min_value=2, max_value=12)})
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
