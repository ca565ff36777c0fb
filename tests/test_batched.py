"Many clients together against each alone, by plain peft and torch."
import math
from contextlib import nullcontext
from unittest import mock
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from conftest import client_data
from fedai.clients import Client_mira
from fedai.config import ConfigError, FedConfig
from fedai.data.prompts import Encoded, train_batch
from fedai.models import add_lora, get_model, get_tokenizer, load_base
from fedai.servers import BaseServer, Server_mira
from fedai.train.generation import greedy
from fedai.train.live import LiveState
from fedai.train.local import Job, batch_indices, local_steps
from fedai.train.losses import AnswerLoss
from fedai.train.modules import ModuleStack, ModuleTask
from fedai.train.passes import checkpointed, count_saved, cut_even, cut_passes, decoder_layers
from fedai.train.prefix import Prefix
from fedai.train.stack import LoraStack, _Runs
from fedai.train.tasks import TextTask
from fedai.utils import rng

def plain_loss(model, batch):
    "Mean over the answer tokens, from all logits of a padded batch with its mask."
    labels = batch.pop('labels')
    return torch.nn.functional.cross_entropy(model(**batch).logits[:,:-1].mT, labels[:,1:])

def alone(cfg, model, state, items, t, k):
    "peft's own layers, a plain loss, one optimiser over the adapter's tensors."
    set_peft_model_state_dict(model, state)
    params = [p for p in model.parameters() if p.requires_grad]
    opt,losses = getattr(torch.optim, cfg.optimizer)(params, lr=cfg.lr, **cfg.optimizer_args),[]
    model.eval()
    for idx in batch_indices(len(items), min(cfg.batch_size, len(items)), cfg.local_step, rng(cfg.seed, 'batches', t, k)):
        loss = plain_loss(model, train_batch([items[i] for i in idx], 0))
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, cfg.grad_clip or math.inf)
        opt.step()
        opt.zero_grad()
    return get_peft_model_state_dict(model),float(np.mean(losses))

def random_items(g, n, low=1, high=20):
    return [Encoded(g.integers(5, 260, g.integers(low, high)).tolist(), g.integers(5, 260, g.integers(1, 6)).tolist()) for _ in range(n)]

OPTIMIZERS = [('AdamW',{}), ('AdamW',dict(weight_decay=.3)), ('Adam',dict(betas=[.5,.9])), ('SGD',dict(momentum=.9)), ('SGD',{}),
              *((n,{}) for n in ('RMSprop','Adagrad','Adadelta','Adamax','NAdam','RAdam','Rprop','ASGD','Adafactor'))]
ALL = ['q_proj','k_proj','v_proj','o_proj','gate_proj','up_proj','down_proj']
# An adaptive optimiser makes a step of full length from a gradient that is rounding alone; so most are compared in float64, on a model
# that keeps to it. Rprop looks at signs and Adafactor at rows relative to themselves, and attention doesn't change when all keys move
# alike: there a gradient is rounding alone in any precision.
CASES = [('gpt2',t,o) for t in (['c_attn'], ['c_attn','c_proj','c_fc'], ['c_fc']) for o in OPTIMIZERS
         if o[0] not in ('Rprop','Adafactor') or t == ['c_fc']] + \
        [('llama',t,o) for t in (['q_proj','v_proj'], ALL, ['o_proj'], ['down_proj'])
         for o in (('SGD',{}), ('SGD',dict(momentum=.9)), ('AdamW',dict(eps=1e-2)))]

def two_models(kind, cfg):
    def one():
        if kind == 'llama': return get_model(cfg)
        from transformers import GPT2Config, GPT2LMHeadModel
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = GPT2Config(vocab_size=261, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=1)
            return add_lora(GPT2LMHeadModel(config), cfg).double()
    return one(),one()

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 6), st.sampled_from(CASES), st.sampled_from(['all','last:1']),
       st.booleans())
def test_together_equals_alone(seed, K, r, case, layers, rslora):
    """Clients with numbers of examples, lengths, batch sizes, steps, learning rates and limits of their own; small products together,
    and run by run as large layers have them."""
    for together in (True, False):
        with mock.patch.object(_Runs, 'batched', lambda self, width: together or self.even):
            equals_alone(seed, K, r, case, layers, rslora)

def equals_alone(seed, K, r, case, layers, rslora):
    g,(kind,targets,optimizer) = np.random.default_rng(seed),case
    base = FedConfig(model='tiny', device='cpu', r=r, target_modules=targets, adapt_layers=layers, use_rslora=rslora, lora_alpha=8.,
                     optimizer=optimizer[0], optimizer_args=optimizer[1], seed=seed)
    (model,plain),task,double = two_models(kind, base),TextTask(base, get_tokenizer(base)),kind == 'gpt2'
    live = LiveState(model)
    if decoder_layers(live.model)[1]: task.prefix = Prefix(live.model)
    if g.random() < .5: task._most = int(g.integers(10, 60))   # several passes in a step
    stack,jobs,starts = LoraStack(live, K),[],[]
    for k in range(K):
        n,dtype = sum(t.numel() for t in live.views.values()),next(iter(live.views.values())).dtype
        stack.load((.05*torch.randn(n, dtype=dtype, generator=torch.Generator().manual_seed(k))).view(torch.uint8), k)
        starts.append(stack.state(k))
        cfg = base.replace(batch_size=int(g.integers(1, 5)), local_step=int(g.integers(1, 5)), lr=float(g.choice([1e-3,1e-2])),
                           grad_clip=g.choice([None,.05,10.]))
        jobs.append(Job(int(g.integers(0, 1000)), random_items(g, int(g.integers(1, 8))), cfg))
    got = local_steps(stack, task, jobs, 3)
    for k,j in enumerate(jobs):
        want,loss = alone(j.cfg, plain, starts[k], j.items, 3, j.id)
        assert np.isclose(got[k]['loss'], loss, rtol=1e-9 if double else 1e-4)
        end = stack.state(k)
        moved = max((want[n] - starts[k][n]).abs().max().item() for n in want)
        for n in want: assert (end[n] - want[n]).abs().max().item() < (1e-5 if double else 3e-3)*moved + 1e-9, n

@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=12), st.integers(1, 400), st.integers(0, 100))
def test_passes_hold_each_sequence_once_and_cost_least(lengths, most, fixed):
    for cuts in (cut_passes(lengths, most, fixed), cut_even(lengths, most)):
        assert sorted(i for c in cuts for i in c) == list(range(len(lengths))) and all(cuts)
    cost = lambda cuts: sum(fixed + len(c)*max(lengths[i] for i in c) for c in cuts)
    assert all(len(c) == 1 or sum(lengths[i] for i in c) <= most for c in cut_even(lengths, most))
    cuts = cut_passes(lengths, most, fixed)
    # 2·50 + 2·11 + 2·fixed against 4·50 + fixed
    assert cut_passes([10,50,11,49], 1000, 70) == [[1,3],[2,0]] and cut_passes([10,50,11,49], 1000, 80) == [[1,3,2,0]]
    assert all(len(c) == 1 or len(c)*max(lengths[i] for i in c) <= most for c in cuts)
    if len(lengths) <= 8:   # against all ways to cut the sorted list
        order,n = sorted(range(len(lengths)), key=lambda i: -lengths[i]),len(lengths)
        best = math.inf
        for mask in range(2**(n-1)):
            parts,at = [],0
            for i in range(n):
                if i == n-1 or mask >> i & 1: parts,at = parts + [order[at:i+1]],i+1
            if all(len(c) == 1 or len(c)*max(lengths[i] for i in c) <= most for c in parts): best = min(best, cost(parts))
        assert cost(cuts) == best

def models():
    import transformers as tf
    kw = dict(vocab_size=261, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=1)
    few = {k: kw[k] for k in ('vocab_size','hidden_size','pad_token_id','bos_token_id','eos_token_id')}
    qv = ['q_proj','v_proj']
    yield 'llama',tf.LlamaForCausalLM,tf.LlamaConfig(**kw),qv
    yield 'mistral, window 8',tf.MistralForCausalLM,tf.MistralConfig(**kw, sliding_window=8),qv
    yield 'qwen2',tf.Qwen2ForCausalLM,tf.Qwen2Config(**kw),qv
    yield 'qwen3',tf.Qwen3ForCausalLM,tf.Qwen3Config(**kw, head_dim=8),['q_proj','up_proj']
    yield 'phi3',tf.Phi3ForCausalLM,tf.Phi3Config(**kw),['qkv_proj']
    yield 'gemma2, window 8',tf.Gemma2ForCausalLM,tf.Gemma2Config(**kw, head_dim=8, sliding_window=8),qv
    layers = ['sliding_attention','full_attention','sliding_attention']
    gemma3 = tf.Gemma3TextConfig(**kw, head_dim=8, sliding_window=8, layer_types=layers)
    yield 'gemma3, window 8',tf.Gemma3ForCausalLM,gemma3,qv
    yield 'mixtral',tf.MixtralForCausalLM,tf.MixtralConfig(**kw, num_local_experts=3, num_experts_per_tok=2),qv
    gpt2 = tf.GPT2Config(vocab_size=261, n_embd=32, n_layer=3, n_head=4, n_positions=128, eos_token_id=1, bos_token_id=1)
    yield 'gpt2',tf.GPT2LMHeadModel,gpt2,['c_attn']
    neox = tf.GPTNeoXConfig(**{k: v for k,v in kw.items() if k != 'num_key_value_heads'})
    yield 'gpt-neox',tf.GPTNeoXForCausalLM,neox,['query_key_value']
    opt = tf.OPTConfig(**few, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=128, word_embed_proj_dim=32)
    yield 'opt',tf.OPTForCausalLM,opt,qv
    yield 'bloom',tf.BloomForCausalLM,tf.BloomConfig(**few, n_layer=3, n_head=4),['query_key_value']
    falcon = tf.FalconConfig(**few, num_hidden_layers=3, num_attention_heads=4)
    yield 'falcon',tf.FalconForCausalLM,falcon,['query_key_value']
    yield 'mamba',tf.MambaForCausalLM,tf.MambaConfig(**few, num_hidden_layers=3, state_size=8),['in_proj']

@pytest.mark.parametrize('layers', ['all','last:1'])
@pytest.mark.parametrize('name,cls,config,targets', list(models()), ids=[m[0] for m in models()])
def test_other_models(name, cls, config, targets, layers):
    "Losses and gradients of three clients against the model on each padded batch with its mask; greedy answers against transformers' own."
    cfg = FedConfig(model='tiny', device='cpu', r=3, target_modules=targets, adapt_layers=layers)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = add_lora(cls(config), cfg).eval()
    live = LiveState(model)
    first = decoder_layers(model)[1]
    assert first == (0 if layers == 'all' else 2)
    prefix = Prefix(model) if first else None
    stack,g = LoraStack(live, 3),np.random.default_rng(1)
    for k in range(3): stack.load((.1*torch.randn(live.layout.nbytes//4, generator=torch.Generator().manual_seed(k))).view(torch.uint8), k)
    owners,seqs = [0,0,1,2,2,2],random_items(g, 6)
    stack.zero_grad()
    with AnswerLoss(model, 0, prefix).over(stack, owners, seqs) as (sums,_): sums.sum().backward()
    for k in range(3):
        live.load(stack.rows[k,:live.layout.nbytes])
        live.zero_grad()
        mine = [s for s,o in zip(seqs, owners) if o == k]
        batch = train_batch(mine, 0)
        labels = batch.pop('labels')
        logits = model(**batch).logits[:,:-1]
        want = torch.nn.functional.cross_entropy(logits.mT, labels[:,1:], reduction='none').sum(1)
        torch.testing.assert_close(sums[[i for i,o in enumerate(owners) if o == k]], want, rtol=1e-4, atol=1e-4)
        want.sum().backward()
        top = max(p.grad.abs().max().item() for p in live.tensors.values())
        for n,p in live.tensors.items(): torch.testing.assert_close(stack.named(k)[n].grad, p.grad, rtol=1e-3, atol=1e-4*top)
        prompts = [s.prompt for s in mine]
        together = greedy(model, prompts, {1}, 0, 5, stack, [k]*len(prompts), prefix)
        said,scored = greedy(model, prompts, {1}, 0, 5, stack, [k]*len(prompts), prefix, [s.answer for s in mine])
        assert said == together   # right answers passed in between change nothing
        if scored is None: assert name == 'mamba' or 'window' in name
        else: torch.testing.assert_close(scored, want, rtol=1e-3, atol=1e-3)
        for p,got in zip(prompts, together):
            ids = torch.tensor([p])
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=0,
                                 eos_token_id=1)[0,len(p):].tolist()
            assert got == (out[:out.index(1)] if 1 in out else out)

def run(cfg, **kw):
    s = Server_mira(cfg, client_data(cfg.num_clients), callbacks=[], **kw)
    s.fit()
    return s,{k: s.store.load(k) for k in range(cfg.num_clients)}

def close(a, b, start, rel=.01):
    for k in a:
        moved = max((a[k][n] - start[n]).abs().max().item() for n in a[k])
        for n in a[k]: assert (a[k][n] - b[k][n]).abs().max().item() < rel*moved, (k, n)

@pytest.mark.parametrize('kw', [dict(), dict(adapt_layers='last:1'), dict(lora_dropout=.3), dict(gradient_checkpointing=True),
                                dict(offload_activations=True), dict(mixed_precision='bf16', optimizer='SGD'),
                                dict(lora_dropout=.3, gradient_checkpointing=True, adapt_layers='last:1'),
                                dict(adapt_layers='last:1', cache_prefix=False),
                                dict(adapt_layers='last:1', prefix_memory_gb=0, prefix_disk_gb=0)], ids=str)
@pytest.mark.filterwarnings('ignore:the frozen prefix has no more room')
def test_engines_agree(make_cfg, kw):
    "Whole runs: batched, in batches of two, one by one; each with its options."
    lr = .1 if 'optimizer' in kw else 1e-2
    ends = [run(make_cfg(engine=e, clients_per_batch=n, eval_every=1, lr=lr, **kw))
            for e,n in (('batched',32), ('batched',2), ('sequential',1))]
    start = ends[0][0].store.layout.views(ends[0][0].store.load_row(0, 0))
    bf16 = 'mixed_precision' in kw
    for s,end in ends[1:]:
        close(ends[0][1], end, start, .1 if bf16 else .01)
        for a,b in zip(ends[0][0].history, s.history):
            assert a['test_loss'].keys() == b['test_loss'].keys() and a['tokens'] == b['tokens']
            assert np.isclose(a['mean_test_loss'], b['mean_test_loss'], rtol=2e-2 if bf16 else 1e-4)
    cards = [s.test() for s,_ in ends]
    for k in range(4): assert np.isclose(cards[0][k]['loss'], cards[2][k]['loss'], rtol=2e-2 if bf16 else 1e-4)

def test_an_option_changes_nothing_but_cost(make_cfg):
    "Exact savings: the same adapters with checkpointing, offloading, the prefix kept, read from a file, or not kept."
    base = dict(adapt_layers='last:1', lr=.1, optimizer='SGD')
    plain = run(make_cfg(**base, cache_prefix=False))[1]
    start = {n: t*0 for n,t in plain[0].items()}
    for kw in (dict(gradient_checkpointing=True), dict(offload_activations=True), dict(prefix_memory_gb=0.)):
        close(plain, run(make_cfg(**base, **kw))[1], start, 1e-4)
    rounded = run(make_cfg(**base, prefix_dtype='bfloat16'))[1]
    close(plain, rounded, start, .05)
    assert any(not torch.equal(plain[k][n], rounded[k][n]) for k in plain for n in plain[k])

def test_checkpointing_keeps_less(make_cfg):
    kept = []
    for on in (False, True):
        cfg = make_cfg(gradient_checkpointing=on)
        model = get_model(cfg)
        loss,stack = AnswerLoss(model, 0),LoraStack(LiveState(model), 2)
        items = random_items(np.random.default_rng(0), 2, 30, 40)
        with (checkpointed(model) if on else nullcontext()), count_saved(model) as saved, loss.over(stack, [0,1], items):
            kept.append(sum(saved.values()))
    assert kept[1] < .5*kept[0]

def test_half_precision_base(make_cfg):
    ends = [run(make_cfg(engine=e, dtype='bfloat16', lr=1e-2))[1] for e in ('batched','sequential')]
    assert ends[0][0][next(iter(ends[0][0]))].dtype == torch.float32
    for k in range(4):
        a,b = (torch.cat([t.flatten() for t in e[k].values()]) for e in ends)
        assert torch.nn.functional.cosine_similarity(a, b, dim=0) > .99

def test_a_loss_that_breaks_is_named_in_a_batch(make_cfg):
    class Breaks(Client_mira):
        def penalty(self, sent): return lambda named: math.inf if self.id == 2 else 0.
    s = Server_mira(make_cfg(engine='batched'), client_data(4), None, None, Breaks, callbacks=[])
    with pytest.raises(RuntimeError, match='client 2, round 0, step 0: the loss is inf'): s.fit()
    assert s.store.round == 0

@pytest.mark.parametrize('lora,reason', [(dict(use_dora=True), 'Dora'),
                                         (dict(bias='lora_only', target_modules=['q_proj']), 'is trained too'),
                                         (dict(trainable_token_indices=[3,4]), 'is trained too')])
def test_what_cant_share_a_batch_is_refused_by_name(make_cfg, lora, reason):
    "With 'auto' it trains one by one."
    def model():
        base = load_base(make_cfg())
        if 'bias' in lora: base.model.layers[0].self_attn.q_proj.bias = torch.nn.Parameter(torch.zeros(64))
        return get_peft_model(base, LoraConfig(task_type='CAUSAL_LM', **{'target_modules': ['q_proj'], **lora}))
    with pytest.raises(ConfigError, match=f"`engine`: expected 'sequential' .*{reason}.*got 'batched'"):
        Server_mira(make_cfg(engine='batched'), client_data(4), model(), callbacks=[])
    s = Server_mira(make_cfg(rounds=1), client_data(4), model(), callbacks=[])
    assert type(s.engine).__name__ == 'SequentialEngine' and s.fit()[0]['mean_loss'] > 0

# ---- plain modules

def net(kind):
    torch.manual_seed(0)
    n = torch.nn
    if kind == 'mlp': return n.Sequential(n.Linear(6, 8), n.Tanh(), n.Linear(8, 3))
    if kind == 'norm': return n.Sequential(n.Linear(6, 8, bias=False), n.BatchNorm1d(8), n.ReLU(), n.Linear(8, 3))
    return n.Sequential(n.Unflatten(1, (1,6)), n.Conv1d(1, 4, 3), n.ReLU(), n.Flatten(), n.LayerNorm(16), n.Linear(16, 3))

def pairs(k, n):
    g = torch.Generator().manual_seed(k)
    return [(torch.randn(6, generator=g), int(torch.randint(3, (1,), generator=g))) for _ in range(n)]

def pair_data(): return [{'train': pairs(k, 8), 'test': pairs(k+50, 4)} for k in range(4)]

@settings(max_examples=20, deadline=None)
@given(st.sampled_from(['mlp','conv','norm']), st.integers(0, 1000), st.sampled_from(OPTIMIZERS), st.sampled_from([None,.1]))
def test_modules_together_equal_alone(kind, seed, optimizer, clip):
    g = np.random.default_rng(seed)
    base = FedConfig(device='cpu', optimizer=optimizer[0], optimizer_args=optimizer[1], lr=1e-2, grad_clip=clip, seed=seed)
    model = net(kind)
    live,task = LiveState(model),ModuleTask(base, torch.nn.CrossEntropyLoss())
    start,K = live.row.clone(),int(g.integers(2, 6))
    jobs = [Job(k, pairs(k, int(g.integers(4, 9))), base.replace(batch_size=int(g.integers(2, 6)), local_step=int(g.integers(1, 5))))
            for k in range(K)]
    stack = ModuleStack(live, K)
    for k in range(K): stack.load(start, k)
    got = local_steps(stack, task, jobs, 0)
    for k,j in enumerate(jobs):
        own = net(kind).train()
        opt,losses = getattr(torch.optim, j.cfg.optimizer)(own.parameters(), lr=1e-2, **j.cfg.optimizer_args),[]
        for idx in batch_indices(len(j.items), min(j.cfg.batch_size, len(j.items)), j.cfg.local_step, rng(seed, 'batches', 0, k)):
            x,y = torch.stack([j.items[i][0] for i in idx]),torch.tensor([j.items[i][1] for i in idx])
            loss = torch.nn.functional.cross_entropy(own(x), y)
            losses.append(loss.item())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(own.parameters(), clip or math.inf)
            opt.step()
            opt.zero_grad()
        assert np.isclose(got[k]['loss'], np.mean(losses), rtol=1e-4)
        end,begin = stack.state(k),live.layout.views(start)
        moved = max((own.state_dict()[n].float() - begin[n].float()).abs().max().item() for n in end)
        for n,t in own.state_dict().items():
            assert (end[n].float() - t.float()).abs().max().item() < .02*moved + 1e-6, n

@pytest.mark.parametrize('kind', ['mlp','norm'])
@pytest.mark.parametrize('server', [BaseServer, Server_mira])
def test_runs_of_modules_agree(make_cfg, kind, server):
    ends = []
    for engine in ('batched','sequential'):
        cfg = make_cfg(engine=engine, optimizer='SGD', lr=.1)
        s = server(cfg, pair_data(), net(kind), callbacks=[], criterion=torch.nn.CrossEntropyLoss())
        s.fit()
        ends.append([s.store.layout.views(s.row_of(s.client_list[k])) for k in range(4)])
    for a,b in zip(*ends):
        for n in a: torch.testing.assert_close(a[n], b[n], rtol=1e-3, atol=1e-5)

class Unused(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b = torch.nn.Linear(6, 3),torch.nn.Linear(6, 3)
    def forward(self, x): return self.a(x)

@pytest.mark.parametrize('bad,reason', [(lambda: torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.Dropout(.5)), 'random'),
                                        (Unused, '`b.weight` has no part in the loss')])
def test_modules_that_cant(make_cfg, bad, reason):
    ce = torch.nn.CrossEntropyLoss()
    with pytest.raises(ConfigError, match=reason): BaseServer(make_cfg(engine='batched'), pair_data(), bad(), callbacks=[], criterion=ce)
    s = BaseServer(make_cfg(), pair_data(), bad(), callbacks=[], criterion=ce)
    assert type(s.engine).__name__ == 'SequentialEngine' and len(s.fit()) == 2

def test_a_lora_on_the_output_layer_trains_one_by_one(make_cfg):
    cfg = make_cfg(target_modules=['lm_head','q_proj'], rounds=1)
    with pytest.raises(ConfigError, match="`engine`: expected 'sequential' .*a LoRA on the output layer"):
        Server_mira(cfg.replace(engine='batched'), client_data(4), callbacks=[])
    s = Server_mira(cfg, client_data(4), callbacks=[])
    assert type(s.engine).__name__ == 'SequentialEngine' and math.isfinite(s.fit()[0]['mean_loss'])

@pytest.mark.parametrize('option', ['gradient_checkpointing','offload_activations'])
def test_options_of_language_models_are_refused_for_others(make_cfg, option):
    with pytest.raises(ConfigError, match=f'`{option}`: expected false for a module'):
        BaseServer(make_cfg(**{option: True}), pair_data(), net('mlp'), callbacks=[], criterion=torch.nn.CrossEntropyLoss())

def test_steps_are_told_while_clients_train_together(make_cfg):
    from fedai.evaluate.tracking import Callback
    class Steps(Callback):
        seen = []
        def after_step(self, server, comm_round, done, steps): self.seen.append((comm_round, done, steps))
    Server_mira(make_cfg(rounds=1, local_step=3), client_data(4), callbacks=[Steps()]).fit()
    assert Steps.seen == [(0,1,3),(0,2,3),(0,3,3)]
