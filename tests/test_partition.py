"Who has which examples: dealing, splitting, duplicates, against plain loops and against flwr-datasets where it is installed."
import matplotlib, numpy as np, pytest, subprocess, sys
matplotlib.use('agg')
from hypothesis import given, settings, strategies as st
from scipy import stats
from fedai.config import ConfigError
from fedai.data.duplicates import near_duplicates
from fedai.data.partition import label_codes, make_partition, partition_table, plot_partition
from fedai.data.splits import hold_out, holdout, split, split_ranks
from fedai.utils import key_seed, rng

WAYS = [('iid',{}), ('quantity',{}), ('quantity',dict(shares='square')), ('quantity',dict(alpha=.01, min_size=1)),
        ('dirichlet',dict(alpha=5, min_size=1)), ('dirichlet',dict(alpha=.05, min_size=0)),
        ('dirichlet',dict(alpha=1., min_size=1, self_balancing=True)), ('shards',dict(shards_per_client=1)),
        ('shards',dict(shards_per_client=3)), ('pathological',dict(classes_per_client=2))]

@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=120), st.integers(1, 12), st.sampled_from(WAYS), st.integers(0, 3))
def test_every_example_is_with_one_client_or_it_is_refused(labels, K, way, seed):
    kind,args = way
    n = len(labels)
    try: parts,names = make_partition(kind, K, seed, n, labels, **args)
    except ConfigError as e:
        assert e.name in ('num_clients','min_size','alpha','shards_per_client','classes_per_client')
        if e.name == 'num_clients': assert K > n
        return
    assert len(parts) == len(names) == K and all(p.dtype == np.int64 and (np.diff(p) > 0).all() for p in parts)
    assert np.sort(np.concatenate(parts)).tolist() == list(range(n))
    if args.get('min_size') != 0: assert min(map(len, parts)) >= args.get('min_size', 1)

@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(['b10','b9','a','ü','']), min_size=1, max_size=40))
def test_natural_clients_are_the_values_and_do_not_move(labels):
    parts,names = make_partition('column', None, 0, len(labels), labels)
    assert {k: p.tolist() for k,p in zip(names, parts)} == {v: [i for i,o in enumerate(labels) if o == v] for v in set(labels)}
    more,names2 = make_partition('column', len(set([*labels,'b9'])), 5, len(labels)+1, np.array([*labels,'b9']))
    before = dict(zip(names, parts))
    for k,p in zip(names2, more): assert p[p < len(labels)].tolist() == before.get(k, np.array([])).tolist()

def test_codes_are_in_the_order_a_person_would_list_them():
    assert label_codes(['b10','b9','a','b9'])[1] == ['a','b9','b10']
    assert label_codes([10.,9.,-1.])[1] == ['-1.0','9.0','10.0']
    assert label_codes([True,False])[1] == ['False','True']
    for bad in ([1,None],[1,'a']):
        with pytest.raises(ConfigError, match='`labels`'): label_codes(bad)

def test_how_a_file_is_sorted_does_not_matter():
    "Neighbours in a file are no likelier to be with one client than others."
    L = np.zeros(4000, np.int64)
    for kind in ('iid','dirichlet','shards','quantity'):
        owner = np.empty(4000, np.int64)
        for k,p in enumerate(make_partition(kind, 8, 0, 4000, L)[0]): owner[p] = k
        expected = sum((np.bincount(owner)/4000)**2)
        assert abs((owner[1:] == owner[:-1]).mean() - expected) < .04, kind

def test_dirichlet_shares_have_the_distribution_of_their_formula():
    "Shares of one client in one label: Beta(α, (K-1)α), by a Kolmogorov-Smirnov test over many seeds."
    K,n = 5,2000
    for alpha in (.3,2.):
        got = [len(make_partition('dirichlet', K, s, n, np.zeros(n, int), alpha=alpha, min_size=0)[0][1])/n for s in range(300)]
        assert stats.kstest(got, stats.beta(alpha, (K-1)*alpha).cdf).pvalue > .001
        got = [(len(make_partition('quantity', K, s, n, alpha=alpha, min_size=0)[0][1]))/n for s in range(300)]
        assert stats.kstest(got, stats.beta(alpha, (K-1)*alpha).cdf).pvalue > .001

def test_dirichlet_divides_each_label_by_the_shares_drawn():
    L = np.array([0]*100 + [1]*37)
    parts,_ = make_partition('dirichlet', 4, 7, 137, L, alpha=1., min_size=0)
    shares = rng(7, 'partition').dirichlet([1.]*4, size=2)
    for c,n in ((0,100),(1,37)):
        edges = [0]
        for k in range(3): edges.append(int(sum(shares[c][:k+1])*n))
        edges.append(n)
        assert [int((L[p] == c).sum()) for p in parts] == [b - a for a,b in zip(edges, edges[1:])]

def test_quantity_is_the_least_and_then_the_shares():
    for shares,f in (('linear',lambda k: k), ('square',lambda k: k*k), ('exponential',lambda k: 2.718281828459045**k)):
        total = sum(f(k) for k in range(1, 7))
        parts,_ = make_partition('quantity', 6, 0, 1000, shares=shares, min_size=10)
        for k,p in enumerate(parts, 1): assert abs(len(p) - 10 - 940*f(k)/total) <= 1

def test_shards_hold_two_pieces_of_the_sorted_data():
    "In McMahan et al. 100 clients with 2 shards of 300 have at most four digits, most two; here 20 clients of 2 x 30."
    L = np.repeat(np.arange(10), 120)
    parts,_ = make_partition('shards', 20, 0, 1200, L)
    for p in parts:
        assert len(p) == 60
        assert set(np.bincount(L[p], minlength=10)) <= {0,30,60}

def test_pathological_has_that_many_labels_and_all_are_used():
    L = np.repeat([f't{i}' for i in range(7)], 90)
    for K,c in ((3,3),(7,1),(40,2),(5,7)):
        parts,_ = make_partition('pathological', K, 0, len(L), L, classes_per_client=c)
        assert [len(set(L[p])) for p in parts] == [c]*K
        for v in set(L): assert np.ptp([m for p in parts if (m := (L[p] == v).sum())]) <= 1
    pairs = {tuple(sorted(set(L[p]))) for p in make_partition('pathological', 40, 0, len(L), L)[0]}
    assert len(pairs) > 10
    with pytest.raises(ConfigError, match=r'whole number from 3 to 7 \(7 labels, 3 clients\)'):
        make_partition('pathological', 3, 0, len(L), L, classes_per_client=2)
    with pytest.raises(ConfigError, match='so few that'): make_partition('pathological', 10, 0, 11, ['a']*10 + ['b'])

@pytest.mark.parametrize('args,field', [
    (dict(alpha=0),'alpha'), (dict(alpha=float('nan')),'alpha'), (dict(alpha='x'),'alpha'), (dict(alpha=True),'alpha'),
    (dict(min_size=-1),'min_size'), (dict(min_size=1.5),'min_size'), (dict(alpha=1e-9),'alpha'), (dict(what=1),'partition_args')])
def test_bad_arguments_are_named(args, field):
    with pytest.raises(ConfigError) as e: make_partition('dirichlet', 10, 0, 200, np.arange(200) % 3, **args)
    assert e.value.name == field

def test_more_refusals():
    for K in (0,-1,2.5,None,True,201):
        with pytest.raises(ConfigError, match='`num_clients`'): make_partition('iid', K, 0, 200)
    with pytest.raises(ConfigError, match='`labels`: expected 200 values'): make_partition('task', None, 0, 200, ['a'])
    with pytest.raises(ConfigError, match='`shares`: expected one of'): make_partition('quantity', 2, 0, 200, shares='cubic')
    with pytest.raises(ConfigError, match='`partition_args`: expected none'): make_partition('iid', 2, 0, 200, alpha=1)
    with pytest.raises(ConfigError, match='`shards_per_client`: expected a whole number from 1 to 20'):
        make_partition('shards', 10, 0, 200, np.arange(200), shards_per_client=21)

# flwr-datasets as a second opinion: the same generator, on the same order of examples
def flwr(kind, labels, K, seed, **args):
    p = pytest.importorskip('flwr_datasets.partitioner')
    from datasets import Dataset
    order = rng(seed, 'partition', 'order').permutation(len(labels))
    q = getattr(p, kind)(num_partitions=K, partition_by='label', seed=key_seed(seed, 'partition'), shuffle=False, **args)
    q.dataset = Dataset.from_dict(dict(label=labels[order], index=order))
    return [sorted(q.load_partition(k)[:]['index']) for k in range(K)]

@pytest.mark.parametrize('seed', range(4))
def test_same_clients_as_flwr_datasets(seed):
    L = np.random.default_rng(seed).integers(0, 6, 1200)
    for balance in (False,True):
        for alpha in (.5,3.):
            ours,_ = make_partition('dirichlet', 8, seed, 1200, L, alpha=alpha, min_size=10, self_balancing=balance)
            theirs = flwr('DirichletPartitioner', L, 8, seed, alpha=alpha, min_partition_size=10, self_balancing=balance)
            assert [p.tolist() for p in ours] == theirs
    for s in (1,2,5):
        ours,_ = make_partition('shards', 8, seed, 1200, L, shards_per_client=s)
        assert [p.tolist() for p in ours] == flwr('ShardPartitioner', L, 8, seed, num_shards_per_partition=s)

def test_any_partitioner_of_flwr_datasets():
    pytest.importorskip('flwr_datasets')
    L = np.random.default_rng(0).integers(0, 6, 600).astype(str)
    for name,args in (('DirichletPartitioner',dict(alpha=1.)), ('IidPartitioner',{}), ('LinearPartitioner',{}),
                      ('PathologicalPartitioner',dict(num_classes_per_partition=2, class_assignment_mode='first-deterministic')),
                      ('ShardPartitioner',dict(num_shards_per_partition=2))):
        parts,names = make_partition('flwr', 6, 0, 600, L, partitioner=name, **args)
        assert np.sort(np.concatenate(parts)).tolist() == list(range(600)) and len(names) == 6
        again = make_partition('flwr', 6, 0, 600, L, partitioner=name, **args)[0]
        assert all((a == b).all() for a,b in zip(parts, again))
    natural,_ = make_partition('flwr', None, 0, 600, L, partitioner='NaturalIdPartitioner')
    assert [len(p) for p in natural] == [int((L == v).sum()) for v in dict.fromkeys(L)]
    shards = dict(partitioner='ShardPartitioner')
    with pytest.warns(UserWarning, match='leaves 8 of 600 examples with no client'):
        assert make_partition('flwr', 8, 0, 600, L, **shards, num_shards_per_partition=4, shard_size=18)
        make_partition('flwr', 37, 0, 600, L, **shards, num_shards_per_partition=1)
    with pytest.raises(ConfigError, match='`partitioner`: expected one of .*did you mean'):
        make_partition('flwr', 6, 0, 600, L, partitioner='DirichletPartitoner')
    with pytest.raises(ConfigError, match="`partition_args`: expected what flwr-datasets' DirichletPartitioner takes"):
        make_partition('flwr', 6, 0, 600, L, alpha=-1.)
    from flwr_datasets.common import telemetry
    assert telemetry.state['executor'] is None   # nothing was sent, nor is there anything to send it

def test_without_the_extra_it_is_named():
    code = '\n'.join(["import sys; sys.modules['flwr_datasets'] = None", 'from fedai.data.partition import make_partition',
                      "try: make_partition('flwr', 2, 0, 10, list('aabbaabbab'))", 'except ImportError as e: print(e)'])
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout
    assert "pip install 'fedai[partition]'" in said

def test_ranks_are_even_and_seeds_independent():
    n = np.arange(20000, dtype=np.uint64)
    for q in (n, np.random.default_rng(0).integers(0, 2**64, 20000, dtype=np.uint64), n << np.uint64(40)):
        r = [split_ranks(q, s) for s in (0,1,2**62)] + [split_ranks(q, 0, 'holdout')]
        for a in r: assert stats.kstest(a, 'uniform').pvalue > 1e-3 and 0 <= a.min() and a.max() < 1
        for i in range(4):
            for j in range(i):
                assert abs(stats.spearmanr(r[i], r[j]).statistic) < .03
                table = np.histogram2d(r[i], r[j], 10, [[0,1],[0,1]])[0]
                assert stats.chisquare(table.ravel()).pvalue > 1e-4

questions = st.lists(st.integers(0, 12), max_size=30).map(lambda o: np.array(o, dtype=np.uint64))
share = st.sampled_from([0.,.01,.2,.5])

@settings(max_examples=300, deadline=None)
@given(questions, share, share.filter(lambda v: v < .5), st.integers(0, 3))
def test_a_split_keeps_questions_whole_and_gives_each_side_one(q, test_share, valid_share, seed):
    s = split(q, np.arange(len(q)), test_share, valid_share, seed)
    assert sorted(np.concatenate(list(s.values())).tolist()) == list(range(len(q)))
    sides = {k: set(q[v].tolist()) for k,v in s.items()}
    assert not sides['train'] & sides['test'] and not sides['train'] & sides['valid'] and not sides['valid'] & sides['test']
    different = len(set(q.tolist()))
    assert bool(sides['train']) == (different > 0)
    assert bool(sides['test']) == (test_share > 0 and different > 1)
    if different > 1 + (test_share > 0): assert bool(sides['valid']) == (valid_share > 0)
    rank = dict(zip(q.tolist(), split_ranks(q, seed)))   # by rank, wherever that leaves no side empty
    by_rank = {'test': {k for k,v in rank.items() if v < test_share},
               'valid': {k for k,v in rank.items() if test_share <= v < test_share + valid_share}}
    by_rank['train'] = set(rank) - by_rank['test'] - by_rank['valid']
    if by_rank['train'] and (by_rank['test'] or not test_share) and (by_rank['valid'] or not valid_share): assert sides == by_rank

def test_a_split_does_not_move_and_clients_agree():
    q = np.random.default_rng(0).integers(0, 2**64, 3000, dtype=np.uint64)
    q[2000:] = q[:1000]                       # the second client has the first one's questions
    a,b = split(q, np.arange(1500), .2, .1),split(q, np.random.default_rng(1).permutation(np.arange(1500, 3000)), .2, .1)
    assert not np.isin(q[[*a['test'],*b['test']]], q[[*a['train'],*b['train']]]).any()
    grown = split(q, np.arange(2000)[::-1], .2, .1)
    for k in a: assert sorted(grown[k][grown[k] < 1500]) == a[k].tolist()

def test_held_out_by_name():
    names = [f'site{k}' for k in range(50)]
    before = {n for n,h in zip(names, hold_out(names, 10, 3)) if h}
    assert len(before) == 10
    after = {n for n,h in zip([*names,'new'][::-1], hold_out([*names,'new'][::-1], 10, 3)) if h}
    assert len(after - before) <= 1          # a newcomer takes one place at most
    assert before != {n for n,h in zip(names, hold_out(names, 10, 4)) if h}
    with pytest.raises(ConfigError, match='not all of them'): hold_out(['a','b'], ['a','b'], 0)
    assert holdout(np.arange(9, dtype=np.uint64), 0., 0).sum() == 0 and hold_out(names, 0, 0).sum() == 0

def plain(train, test, threshold):
    "Word 3-grams that aren't a template's, as sets, and every pair."
    words = lambda t: tuple(w for w in (o.strip('.,;:!?\'"`') for o in t.lower().split()) if w)
    grams = lambda w: {w[i:i+3] for i in range(len(w)-2)}
    a,b = [words(t) for t in train],[words(t) for t in test]
    distinct = list(dict.fromkeys(a))
    df = {}
    for w in distinct:
        for g in grams(w): df[g] = df.get(g, 0) + 1
    cut = max(2, min(20, len(distinct)//20), len(distinct)//10_000)
    own = lambda w: {g for g in grams(w) if df.get(g, 0) <= cut}
    A = [own(w) for w in a]
    exact = near = 0
    best = []
    for w in b:
        if w in a:
            exact += 1
            best.append(1.)
            continue
        o = own(w)
        s = max((len(o & x)/len(o | x) for x in A if o | x), default=0.) if len(o) >= 5 else 0.
        near += s >= threshold
        best.append(s if s >= threshold else 0.)
    return exact,near,best

text = st.lists(st.sampled_from('a b c d The the, 1 2 + ?'.split()), max_size=16).map(' '.join)

@settings(max_examples=300, deadline=None)
@given(st.lists(text, max_size=12), st.lists(text, max_size=6), st.sampled_from([.3,.5,.8,1.]), st.data())
def test_near_duplicates_are_those_of_all_pairs(train, test, threshold, data):
    if train:    # some tests are training texts with a word changed
        for t in data.draw(st.lists(st.sampled_from(train), max_size=4)):
            w = t.split()
            if w: w[data.draw(st.integers(0, len(w)-1))] = 'z'
            test = [*test,' '.join(w)]
    d = near_duplicates(train, test, threshold)
    exact,near,best = plain(train, test, threshold)
    assert (d['test'], d['exact'], d['near']) == (len(test), exact, near)
    assert np.allclose(d['similarity'], best) and ((d['nearest'] >= 0) == (d['similarity'] > 0)).all()

def test_near_duplicates_in_longer_texts_and_sampled():
    r = np.random.default_rng(0)
    words = [f'w{i}' for i in range(3000)]
    train = [' '.join(r.choice(words, 60)) for _ in range(500)]
    test = [' '.join(r.choice(words, 60)) for _ in range(100)]
    for i in range(40): test[i] = ' '.join('other' if k == 30 else w for k,w in enumerate(train[i].split()))   # 55 of 61
    for i in range(40, 60): test[i] = ' '.join(w if k % 6 else 'other' for k,w in enumerate(train[i].split()))
    d = near_duplicates(train, test)
    assert (d['exact'], d['near'], d['share']) == (0, 40, 1.) and d['nearest'][:40].tolist() == list(range(40))
    assert plain(train, test, .8)[1] == 40
    few = near_duplicates(train, test, max_ngrams=15000)
    assert few['share'] < .6 and 30 <= few['near'] <= 45 and (few['nearest'][:40] == d['nearest'][:40]).mean() > .75

def test_a_template_is_not_a_duplicate():
    r = np.random.default_rng(0)
    ask = lambda: (f"Tom has {r.integers(10, 99)} apples and gives {r.integers(10, 99)} of them to his sister, who then eats one. "
                   "How many apples does Tom have left after that? Explain each step, and give the answer as a whole number "
                   "on a line of its own.")
    train,test = [ask() for _ in range(400)],[ask() for _ in range(100)]
    d = near_duplicates(train, test)
    assert d['near'] == 0 and d['exact'] == sum(t in train for t in test)
    assert near_duplicates(['3 + 4 =','3 + 5 ='], ['3 - 4 =','3 + 4 ='])['exact'] == 1

def test_table_and_picture_count_the_same():
    import matplotlib.pyplot as plt
    r = np.random.default_rng(0)
    for K,C in ((1,1),(4,3),(20,60),(31,13),(300,12)):
        L = r.integers(0, C, 5000)
        parts,names = make_partition('iid', K, 0, 5000)
        t = partition_table(parts, L, names)
        if K <= 20:
            row = t.splitlines()[1].replace(',', '').split()
            assert row[0] == 'client0' and int(row[-1]) == len(parts[0]) == sum(map(int, row[1:-1]))
        assert f'of {len(set(L))},' in t
        ax = plot_partition(parts, L, names)
        if K <= 30: assert sum(p.get_width() for p in ax.patches) == 5000
        else: assert len(ax.collections) >= min(C, 12) and ax.get_ylim()[0] == 0
        assert len(ax.get_legend().get_texts()) == min(C, 12) if C > 1 else ax.get_legend() is None
        ax.figure.canvas.draw()
        plt.close()
    assert partition_table([np.arange(2),np.arange(2, 8)]).splitlines()[1].split() == ['0','2']
