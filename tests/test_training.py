"Local training against plain peft and torch on the same inputs."
import numpy as np, pytest, torch
from peft import LoraConfig, get_peft_model
from conftest import sums
from fedai.data.prompts import train_batch
from fedai.models import get_base_model, get_model, get_tokenizer
from fedai.train.live import LiveState
from fedai.train.local import Job, batch_indices, local_steps
from fedai.train.tasks import TextTask
from fedai.utils import rng

def plain(cfg, tok, state, items, t, k):
    "peft, transformers' own loss over all logits, a torch optimiser: nothing of fedai but the order of the examples."
    lora = LoraConfig(task_type='CAUSAL_LM', r=cfg.r, lora_alpha=cfg.lora_alpha, target_modules=cfg.target_modules)
    m = get_peft_model(get_base_model(cfg), lora)
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    set_peft_model_state_dict(m, state)
    ps = [p for p in m.parameters() if p.requires_grad]
    opt = getattr(torch.optim, cfg.optimizer)(ps, lr=cfg.lr, **cfg.optimizer_args)
    m.train()
    losses = []
    for idx in batch_indices(len(items), cfg.batch_size, cfg.local_step, rng(cfg.seed, 'batches', t, k)):
        b = train_batch([items[i] for i in idx], tok.pad_token_id)
        loss = m(**b).loss
        losses.append(loss.item())
        loss.backward()
        if cfg.grad_clip is not None: torch.nn.utils.clip_grad_norm_(ps, cfg.grad_clip)
        opt.step()
        opt.zero_grad()
    return get_peft_model_state_dict(m),np.mean(losses)

@pytest.mark.parametrize('kw', [dict(), dict(grad_clip=None), dict(grad_clip=.01),
                                dict(optimizer='SGD', lr=.1, optimizer_args=dict(momentum=.9)),
                                dict(optimizer='Adam', optimizer_args=dict(betas=[.5,.9]))])
def test_local_steps_equal_plain_peft(make_cfg, kw):
    cfg = make_cfg(**{**dict(local_step=5, lr=1e-2), **kw})
    tok,model = get_tokenizer(cfg),get_model(cfg)
    live,task = LiveState(model),TextTask(cfg, tok)
    items = task.prepare(sums(0), '').items
    with torch.no_grad():
        for n,v in live.views.items(): v.add_(.01*torch.randn(v.shape, generator=torch.Generator().manual_seed(len(n))))
    state = live.state()
    want,loss = plain(cfg, tok, state, items, 2, 1)
    r, = local_steps(live, task, [Job(1, items, cfg)], 2)
    got = live.state()
    assert np.isclose(r['loss'], loss, rtol=1e-5)
    for n in got:
        moved = (want[n] - state[n]).abs().max()
        assert moved > 0 and (got[n] - want[n]).abs().max() < 1e-3*moved, n

def test_bf16_autocast_trains(make_cfg):
    cfg = make_cfg(mixed_precision='bf16', local_step=20, lr=1e-2)
    model = get_model(cfg)
    task = TextTask(cfg, get_tokenizer(cfg))
    items = task.prepare(sums(0), '').items
    live = LiveState(model)
    first = local_steps(live, task, [Job(0, items, cfg.replace(local_step=1))], 0)[0]['loss']
    assert local_steps(live, task, [Job(0, items, cfg)], 0)[0]['loss'] < first
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)

def test_conv1d_models_work(make_cfg):
    from transformers import GPT2Config, GPT2LMHeadModel
    from fedai.servers import Server_mira
    from conftest import client_data
    cfg = make_cfg(num_clients=2, target_modules=['c_attn'], rounds=1, max_length=256)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=261, n_embd=32, n_layer=2, n_head=2, n_positions=256, eos_token_id=1, bos_token_id=1))
    s = Server_mira(cfg, client_data(2), gpt2, callbacks=[])
    s.fit()
    assert s.history[0]['mean_loss'] > 0 and set(s.test()) == {0,1}
