"Graphs, what mixing along them does, similarities from factors, and who is selected: properties, and plain float64 programs."
import json, random, warnings
import networkx as nx, numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from fedai.config import ConfigError
from fedai.graphs import (check_graph, complete_graph, effective_pull, erdos_renyi_graph, graph_facts, knn_graph, laplacian, load_graph,
                          lora_similarity, max_degree, mira_matrix, normalise_graph,
                          plot_network, random_graph, ring_graph, similarity_graph, state_similarity, step_limit, subgraph, task_graph)
from fedai.selection import (availability_selection, neighbourhood_selection, power_of_choice, round_robin_selection, uniform_selection,
                             weighted_selection)
from fedai.utils import rng

few = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**31)

@st.composite
def graphs(draw, low=1, high=12):
    "Symmetric graphs, sparse or dense, weights of any scale; some clients without neighbours."
    K,g = draw(st.integers(low, high)),np.random.default_rng(draw(seeds))
    A = np.triu(g.random((K,K))*(g.random((K,K)) < draw(st.sampled_from([.1,.3,.7,1.]))), 1)*10.**draw(st.integers(-6, 6))
    return A + A.T

@st.composite
def directed(draw):
    K,g = draw(st.integers(1, 10)),np.random.default_rng(draw(seeds))
    A = g.random((K,K))*(g.random((K,K)) < draw(st.sampled_from([.15,.4,1.])))
    np.fill_diagonal(A, 0)
    return A

def radius(M): return np.abs(np.linalg.eigvals(M)).max()

def quiet(A, s):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return mira_matrix(A, s)

# constructors

@few
@given(st.integers(1, 15), st.integers(1, 5), st.floats(0, 1), seeds)
def test_every_constructor_makes_a_client_graph(K, n, p, seed):
    g = np.random.default_rng(seed)
    X,S = g.normal(size=(K,3)),g.normal(size=(K,K))
    made = [random_graph(K, seed), complete_graph(K), task_graph(g.integers(0, 3, K)), ring_graph(K, n), erdos_renyi_graph(K, p, seed),
            knn_graph(X, n), knn_graph(0*X, n)]
    made += [similarity_graph(S, k, t, T, how) for k in (None,n) for t in (None,.2) for T in (None,p + .01) for how in ('mean','max','min')]
    for A in made: assert (check_graph(A, K) == A).all()
    assert (erdos_renyi_graph(K, p, seed) == erdos_renyi_graph(K, p, seed)).all()

@few
@given(st.integers(1, 12), st.integers(1, 7))
def test_ring_is_networkx_circulant(K, n):
    assert (ring_graph(K, n) == nx.to_numpy_array(nx.circulant_graph(K, [o for o in range(1, n+1) if o % K]))).all()

def test_a_random_graph_leaves_the_global_generators_alone():
    before = np.random.get_state()[1].copy(),random.getstate()
    A = erdos_renyi_graph(12, .4)
    plot_network(A)
    assert (np.random.get_state()[1] == before[0]).all() and random.getstate() == before[1]

@few
@given(st.integers(2, 10), st.integers(1, 4), seeds)
def test_top_k_and_temperature_against_loops(K, k, seed):
    S = np.random.default_rng(seed).normal(size=(K,K))
    for T in (None,.3):
        A = np.zeros((K,K))
        for i in range(K):
            mine = sorted((j for j in range(K) if j != i and (T or S[i,j] > 0)), key=lambda j: -S[i,j])[:k]
            for j in mine: A[i,j] = S[i,j] if T is None else np.exp(S[i,j]/T)/sum(np.exp(S[i,l]/T) for l in mine)
        for how,want in dict(mean=(A + A.T)/2, max=np.maximum(A, A.T), min=np.minimum(A, A.T)).items():
            np.testing.assert_allclose(similarity_graph(S, top_k=k, temperature=T, symmetrise=how), want, rtol=1e-12)
    assert ((similarity_graph(np.abs(S), top_k=k, symmetrise='min') > 0).sum(1) <= k).all()

def test_a_tiny_temperature_overflows_nowhere():
    S = np.array([[0,1e3,-1e3],[1e3,0,999.],[-1e3,999.,0]])
    np.testing.assert_allclose(similarity_graph(S, temperature=1e-300), [[0,1,0],[1,0,.5],[0,.5,0]])

def test_settings_that_make_no_graph():
    S = np.ones((3,3))
    for call,message in [(lambda: similarity_graph(S, top_k=0), '`top_k`: expected at least 1, got 0'),
                         (lambda: similarity_graph(S, temperature=0), '`temperature`: expected a value above 0, got 0'),
                         (lambda: similarity_graph(S[:2]), r'`similarity`: expected a square array of numbers, got .*\(2, 3\)'),
                         (lambda: knn_graph([1,2], 1), r'`features`: expected a \(K, d\) array of numbers'),
                         (lambda: ring_graph(4, 0), '`neighbours`: expected at least 1, got 0'),
                         (lambda: erdos_renyi_graph(4, 1.5), '`p`: expected a probability'),
                         (lambda: normalise_graph(S, 'rows'), r"`how`.*did you mean 'row'")]:
        with pytest.raises(ConfigError, match=message): call()

# files

@few
@given(graphs())
def test_files_give_back_the_graph(tmp_path_factory, A):
    d = tmp_path_factory.getbasetemp()
    np.save(d/'a.npy', A)
    (d/'a.csv').write_text('\n'.join(','.join(map(repr, r)) for r in A.tolist()))
    nx.write_weighted_edgelist(nx.from_numpy_array(A), d/'a.edges')
    for name in ('a.npy','a.csv','a.edges'): assert (load_graph(d/name, len(A)) == A).all()

@pytest.mark.parametrize('name,text,message', [
    ('g.csv', '0,1\n1', "`graph`: expected 2 numbers in each line, as in the first, got '.*g.csv, line 2: 1'"),
    ('g.csv', '\n0,one\n1,0', "got '.*g.csv, line 2: 0,one'"),
    ('g.csv', '0,1\n2,0', 'a symmetric array'),
    ('g.csv', '', r'a square array of shape \(2, 2\)'),
    ('g.edges', '0 1\n# x\n0 1 2 3', r"lines `i j weight`, the weight optional, got '.*g.edges, line 3: 0 1 2 3'"),
    ('g.edges', '0', 'line 1: 0'), ('g.txt', '0.5 1', 'line 1: 0.5 1'), ('g.txt', '0 2', 'clients 0 to 1, got .*line 1'),
    ('g.txt', '-1 0', 'clients 0 to 1'),
    ('g.txt', '0 1 -2', 'a weight of at least 0'), ('g.txt', '0 1 inf', 'a weight of at least 0'),
    ('g.txt', '0 0', 'edges between two clients'), ('g.txt', '0 1 1\n1 0 2', r'one weight for an edge, as above \(1\), got .*line 2'),
])
def test_a_bad_line_is_named(tmp_path, name, text, message):
    (tmp_path/name).write_text(text)
    with pytest.raises(ConfigError, match=message): load_graph(tmp_path/name, 2)

# mixing

@few
@given(graphs(), st.floats(0, .999), seeds)
def test_mixing_along_a_symmetric_graph(A, share, seed):
    K,s = len(A),share*min(step_limit(A), 1e9)
    M,p = quiet(A, s),np.random.default_rng(seed).permutation(K)
    np.testing.assert_allclose(M.sum(1), 1, atol=1e-9)
    np.testing.assert_allclose(M.sum(0), 1, atol=1e-9)   # the mean over clients is kept
    np.testing.assert_allclose(quiet(A[np.ix_(p, p)], s), M[np.ix_(p, p)], atol=1e-12)
    assert radius(M) <= 1 + 1e-9
    if s*max_degree(A) <= 1: assert M.min() >= -1e-12

@few
@given(directed(), st.floats(0, .99))
def test_mixing_along_a_directed_graph(A, share):
    "The limit is where the spectral radius passes 1, and never below 1/max degree."
    limit = step_limit(A)
    assert limit*max_degree(A) >= 1 - 1e-6 or not A.any()
    M = quiet(A, share*min(limit, 1e9))
    np.testing.assert_allclose(M.sum(1), 1, atol=1e-9)
    assert radius(M) <= 1 + 1e-6
    if A.any():
        assert radius(np.eye(len(A)) - 1.01*limit*laplacian(A)) > 1
        with pytest.raises(ConfigError, match='lambda_'): quiet(A, 1.01*limit)

@few
@given(graphs(low=2))
def test_steps_on_the_bound_are_refused_whatever_the_rounding(A):
    if A.any():
        with pytest.raises(ConfigError, match=r'ηλ·λ_max\(L\) below 2'): quiet(A, step_limit(A))
        quiet(A, .9999*step_limit(A))

def test_a_ring_with_coupling_1_swaps_and_is_refused():
    for K in (2,4,6,8,10,30):
        with pytest.raises(ConfigError): mira_matrix(ring_graph(K), 1/max_degree(ring_graph(K)))
        with pytest.raises(ConfigError): mira_matrix(normalise_graph(ring_graph(K), 'row'), 1.)

@few
@given(graphs())
def test_normalisations(A):
    d,alone = A.sum(1),A.sum(1) == 0
    assert (normalise_graph(A, 'none') == A).all()
    assert max_degree(normalise_graph(A, 'max_degree')) == pytest.approx(0 if alone.all() else 1)
    row,sym = normalise_graph(A, 'row'),normalise_graph(A, 'symmetric')
    np.testing.assert_allclose(row.sum(1), ~alone)
    assert (check_graph(sym, len(A)) == sym).all() and max_degree(sym) <= len(A)**.5 + 1e-9
    for N in (row,sym):
        assert np.isfinite(N).all() and ((N > 0) == (A > 0)).all()
        # the scale of the weights doesn't matter
        np.testing.assert_allclose(normalise_graph(1e3*A, 'row' if N is row else 'symmetric'), N)
    M = mira_matrix(row, .5)
    np.testing.assert_allclose(effective_pull(M), .5*~alone)
    np.testing.assert_allclose(d@M, d, rtol=1e-9)   # the mean weighted by degree is kept
    for k in np.flatnonzero(alone): assert (M[k] == np.eye(len(A))[k]).all()

@few
@given(graphs(low=2), st.data(), st.floats(0, .999))
def test_renormalised_subgraph(A, data, share):
    ids = data.draw(st.lists(st.integers(0, len(A)-1), min_size=1, unique=True))
    part,full = subgraph(A, ids),A.sum(1)[ids]
    assert (part == A[np.ix_(ids, ids)]).all()
    R = subgraph(A, ids, renormalize=True)
    assert (check_graph(R, len(ids)) == R).all() and ((R > 0) == (part > 0)).all()
    assert (R.sum(1) <= full*(1 + 1e-9)).all() and (R.sum(1) >= part.sum(1)*(1 - 1e-9)).all()
    # a step that is an average on the whole graph is one in every round
    assert (mira_matrix(R, share/(max_degree(A) or 1)) >= -1e-9).all()
    np.testing.assert_allclose(subgraph(A, range(len(A)), renormalize=True), A, rtol=1e-12)

@few
@given(st.integers(2, 30), st.data())
def test_on_a_complete_graph_the_degree_is_restored(K, data):
    ids = data.draw(st.lists(st.integers(0, K-1), min_size=2, unique=True))
    np.testing.assert_allclose(subgraph(complete_graph(K), ids, renormalize=True).sum(1), K-1)

@few
@given(graphs(), st.floats(0, 2))
def test_facts(A, share):
    s = share*step_limit(A) if A.any() else share
    f,g = graph_facts(A, s),nx.from_numpy_array(A)
    assert json.loads(json.dumps(f, allow_nan=False)) == f
    assert (f['clients'],f['edges'],f['components']) == (len(A),g.number_of_edges(),nx.number_connected_components(g))
    assert (f['spectral_gap'] > 0) == (len(A) > 1 and f['components'] == 1)
    pull = s*A.sum(1)
    assert f['pull_mean'] == pytest.approx(pull.mean(), abs=1e-12) and f['pull_max'] == pytest.approx(pull.max(), abs=1e-12)
    try: quiet(A, s)
    except ConfigError: assert not f['stable']
    else: assert f['stable']

# similarities

@st.composite
def adapters(draw):
    g = np.random.default_rng(draw(seeds))
    layers = [(f'layer{i}.', *g.integers(2, 7, 2)) for i in range(draw(st.integers(1, 3)))]
    states = []
    for r in draw(st.lists(st.integers(0, 5), min_size=1, max_size=5)):   # 0: an adapter whose B is zero
        states.append({n+e: torch.from_numpy(g.normal(size=s))*(r > 0 or e[5] == 'A') for n,i,o in layers
                       for e,s in (('lora_B.weight',(o,max(r, 1))),('lora_A.weight',(max(r, 1),i)))})
    return states

def dense_similarity(states):
    V = np.stack([np.concatenate([(s[n[:-len('lora_A.weight')] + 'lora_B.weight']@s[n]).numpy().ravel() for n in sorted(s)
                                  if n.endswith('lora_A.weight')]) for s in states])
    S = np.eye(len(V))
    for k in range(len(V)):
        for l in range(len(V)):
            size = np.linalg.norm(V[k])*np.linalg.norm(V[l])
            if k != l: S[k,l] = V[k]@V[l]/size if size else 0
    return S

@few
@given(adapters(), seeds)
def test_lora_similarity_is_the_dense_one_and_blind_to_the_choice_of_factors(states, seed):
    S = lora_similarity(states)
    np.testing.assert_allclose(S, dense_similarity(states), atol=1e-9)
    assert (S == S.T).all() and (np.diag(S) == 1).all() and (np.abs(S) <= 1).all()
    g,other = np.random.default_rng(seed),[]
    for s in states:
        new = {}
        for n in (n[:-len('lora_A.weight')] for n in s if n.endswith('lora_A.weight')):
            A,B = s[n+'lora_A.weight'],s[n+'lora_B.weight']
            Q = torch.from_numpy(np.linalg.qr(g.normal(size=(len(A),)*2))[0]*g.uniform(.5, 2, len(A)))   # invertible, and well conditioned
            new |= {n+'lora_A.weight': torch.linalg.solve(Q, A), n+'lora_B.weight': B@Q}
        other.append(new)
    np.testing.assert_allclose(lora_similarity(other), S, atol=1e-9)

def test_lora_similarity_of_low_precision_states():
    g = torch.Generator().manual_seed(0)
    states = [{'q.lora_A.weight': torch.randn(4, 8, generator=g).bfloat16(),
               'q.lora_B.weight': torch.randn(6, 4, generator=g).bfloat16().requires_grad_()} for _ in range(3)]
    np.testing.assert_allclose(lora_similarity(states), dense_similarity([{n: t.detach().double() for n,t in s.items()} for s in states]),
                               atol=1e-12)

def test_states_that_have_no_similarity():
    one = {'q.lora_A.weight': torch.ones(2,3), 'q.lora_B.weight': torch.ones(4,2)}
    with pytest.raises(ConfigError, match=r"`states\[0\]`: expected names that end in lora_A.weight and lora_B.weight, got \['w'\]"):
        lora_similarity([{'w': torch.ones(2)}])
    with pytest.raises(ConfigError, match=r'`states\[1\]`: expected a tensor q.lora_A.weight'):
        lora_similarity([one, {'q.lora_B.weight': torch.ones(4,2)}])
    with pytest.raises(ConfigError, match=r'`states\[1\]`: expected the same layers and sizes'):
        lora_similarity([one, {**one, 'k.lora_A.weight': torch.ones(2,3), 'k.lora_B.weight': torch.ones(4,2)}])
    with pytest.raises(ConfigError, match=r'`states\[1\]`: expected the same names and shapes'):
        state_similarity([one, {**one, 'q.lora_A.weight': torch.ones(3,2)}])

@few
@given(st.integers(1, 5), seeds)
def test_state_similarity_is_numpys_cosine(K, seed):
    X = np.random.default_rng(seed).normal(size=(K,7)).astype(np.float32)
    S = state_similarity([{'a': torch.from_numpy(x[:4]).reshape(2,2), 'b': torch.from_numpy(x[4:]), 'n': torch.tensor(3)} for x in X])
    X = X.astype(np.float64)/np.linalg.norm(X.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(S, X@X.T, atol=1e-12)

# selection

SELECTIONS = dict(uniform=lambda A, m, rounds, seed: uniform_selection(len(A), m, rounds, seed),
                  weighted=lambda A, m, rounds, seed: weighted_selection(np.arange(len(A)) + 1, m, rounds, seed),
                  round_robin=lambda A, m, rounds, seed: round_robin_selection(len(A), m, rounds, seed),
                  neighbourhood=neighbourhood_selection,
                  availability=lambda A, m, rounds, seed: availability_selection(np.ones((rounds,len(A)), dtype=bool), m, rounds, seed))

@pytest.mark.parametrize('name', SELECTIONS)
@few
@given(graphs(), st.floats(.01, 1), st.integers(0, 12), seeds)
def test_selections(name, A, m, rounds, seed):
    pick,K = SELECTIONS[name],len(A)
    s = pick(A, m, rounds, seed)
    assert len(s) == rounds and s == pick(A, m, rounds, seed)
    assert pick(A, m, rounds//2, seed) == s[:rounds//2]   # a longer run has the same beginning
    for ids in s:
        assert len(ids) == max(1, round(m*K)) and ids == sorted(set(ids)) and 0 <= ids[0] and ids[-1] < K
        assert all(type(i) is int for i in ids)

@few
@given(st.integers(1, 12), st.floats(.01, 1), st.integers(1, 30), seeds)
def test_round_robin_is_fair_after_every_round(K, m, rounds, seed):
    turns = np.cumsum([[i in ids for i in range(K)] for ids in round_robin_selection(K, m, rounds, seed)], 0)
    assert np.ptp(turns, axis=1).max() <= 1

def test_round_robin_lets_everyone_meet():
    met = np.zeros((8,8), dtype=int)
    for ids in round_robin_selection(8, .5, 60): met[np.ix_(ids, ids)] += 1
    assert met.min() > 3   # 13 expected; with one order for all passes, half of the pairs never would

@few
@given(graphs(low=2), st.floats(.01, 1), seeds)
def test_neighbourhoods_are_connected(A, m, seed):
    "As few components as there can be: one, unless the component of the first client was used up."
    sizes = sorted(len(c) for c in nx.connected_components(nx.from_numpy_array(A)))
    whole = {frozenset(c) for c in nx.connected_components(nx.from_numpy_array(A))}
    for ids in neighbourhood_selection(A, m, 5, seed):
        parts = [frozenset(ids[i] for i in c) for c in nx.connected_components(nx.from_numpy_array(subgraph(A, ids)))]
        assert sum(p not in whole for p in parts) <= 1
        if len(ids) <= sizes[0]: assert len(parts) == 1

@few
@given(st.integers(1, 10), st.integers(1, 6), st.floats(.01, 1), seeds)
def test_availability(K, rounds, m, seed):
    V = np.random.default_rng(seed).random((rounds,K)) < .4
    V[~V.any(1),0] = True
    for t,ids in enumerate(availability_selection(V, m, rounds, seed)):
        assert V[t,ids].all() and len(ids) == min(max(1, round(m*K)), V[t].sum())

@few
@given(st.integers(1, 10), st.floats(.01, 1), st.data(), seeds)
def test_power_of_choice(K, m, data, seed):
    k = max(1, round(m*K))
    d = data.draw(st.integers(k, K))
    loss = data.draw(st.lists(st.none() | st.floats(0, 10), min_size=K, max_size=K))
    ids = power_of_choice(loss, m, d, rng(seed, 'selection', 0))
    assert len(ids) == k and ids == sorted(set(ids)) and ids == power_of_choice(loss, m, d, rng(seed, 'selection', 0))
    drawn,value = set(rng(seed, 'selection', 0).choice(K, d, replace=False).tolist()),[np.inf if o is None else o for o in loss]
    assert set(ids) <= drawn and min(value[i] for i in ids) >= max((value[i] for i in drawn - set(ids)), default=-1)

def test_selections_that_can_not_be():
    for call,message in [(lambda: weighted_selection([1,0,0], 1., 1),
                          r'`num_examples`: expected at least 3 clients with examples \(m = 1\), got 1'),
                         (lambda: weighted_selection([1,-1], 1., 1), '`num_examples`: expected a number of at least 0'),
                         (lambda: availability_selection([[1],[0]], 1., 2), '`available`: expected at least one client in round 1, got 0'),
                         (lambda: availability_selection([[1]], 1., 2), '`available`: expected a line for each of 2 rounds'),
                         (lambda: power_of_choice([1,2], 1., 1, rng(0)), r'`d`: expected from 2 \(m·K\) to 2 candidates, got 1')]:
        with pytest.raises(ConfigError, match=message): call()

def test_uniform_draws_stay_what_they_were():
    assert uniform_selection(10, .3, 3, seed=1) == [[1,4,7],[1,5,7],[0,4,9]]
