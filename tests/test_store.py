"What the store keeps beside the rows, and states that are replaced before the commit."
import json, os
import numpy as np, pytest, torch
from safetensors.torch import load_file
from fedai.store.adapters import AdapterStore
from fedai.store.rows import StoreError

def w(x): return {'w': torch.full((3,), float(x))}
def new(root, **kw):
    store = AdapterStore(root, **kw)
    store.claim()
    store.start(w(0), {'adapter_config.json': '{}'})
    return store
def a_round(store, round, ids, keep=(), M=None):
    for i in ids: store.save_trained(round, i, w(round + i/10))
    store.mix(ids, np.eye(len(ids)) if M is None else M, round)
    for name,x in keep: store.keep(round, name, {'x': torch.tensor([x], dtype=torch.float64), 'n': torch.tensor(round)})
    store.commit(round, ids)
def kept_files(root): return sorted(str(o.relative_to(root)) for o in root.rglob('kept_*'))

@pytest.mark.parametrize('keep_trained', [False,True])
def test_what_is_kept_stays_until_it_is_kept_anew_and_one_file_of_it(tmp_path, keep_trained):
    kw = dict(keep_rounds=1, keep_trained=keep_trained)
    s = new(tmp_path, **kw)
    assert s.kept('a') is None
    a_round(s, 1, [0,1], [('a',1.),('b_2',2.)])
    a_round(s, 2, [0,1], [('a',3.)])
    for t in (3,4): a_round(s, t, [0,1])   # folder 1 holds nothing that is needed but b_2, folder 2 nothing but a
    for o in (s, AdapterStore(tmp_path, **kw)):
        assert kept_files(tmp_path) == ['1/kept_b_2.safetensors','2/kept_a.safetensors'] and o.check() == []
        a = o.kept('a')
        assert a['x'].item() == 3 and a['x'].dtype == torch.float64 and a['n'].item() == 2 and o.kept('b_2')['x'].item() == 2
    s.recover()
    assert kept_files(tmp_path) == ['1/kept_b_2.safetensors','2/kept_a.safetensors'] and not list((tmp_path/'1').glob('local_output_*'))
    a_round(s, 5, [0], [('b_2',4.)])
    assert kept_files(tmp_path) == ['2/kept_a.safetensors','5/kept_b_2.safetensors']
    assert (tmp_path/'1').exists() == keep_trained   # the folder goes with the last of what it held
    assert (tmp_path/'4').exists() and s.load(1)['w'][0] == torch.tensor(4.1)

def test_what_was_not_committed_was_not_kept(tmp_path):
    s = new(tmp_path)
    a_round(s, 1, [0,1], [('a',1.)])
    for i in (0,1): s.save_trained(2, i, w(i))
    s.mix([0,1], np.eye(2), 2)
    s.keep(2, 'a', {'x': torch.ones(5)})
    s.keep(2, 'c', {'x': torch.ones(5)})
    other = AdapterStore(tmp_path)
    assert s.kept('a')['x'].item() == other.kept('a')['x'].item() == 1 and s.kept('c') is other.kept('c') is None
    s.recover()
    assert kept_files(tmp_path) == ['1/kept_a.safetensors'] and set(s.trained(2)) == {0,1}
    s.mix([0,1], np.eye(2), 2)
    s.commit(2, [0,1])
    assert s.kept('a')['x'].item() == 1 and s.kept('c') is None and s.check() == []

def test_a_kill_between_commit_and_pruning(tmp_path, monkeypatch):
    s = new(tmp_path)
    a_round(s, 1, [0], [('a',1.)])
    monkeypatch.setattr(AdapterStore, '_prune', lambda self, rounds: None)
    a_round(s, 2, [0], [('a',2.)])
    assert len(kept_files(tmp_path)) == 2   # the old one was there until the commit was done
    monkeypatch.undo()
    s = AdapterStore(tmp_path)
    s.recover()
    assert kept_files(tmp_path) == ['2/kept_a.safetensors'] and s.kept('a')['x'].item() == 2

def test_damage_is_named(tmp_path):
    s = new(tmp_path)
    a_round(s, 1, [0], [('a',1.),('b',1.)])
    f = tmp_path/'1'/'kept_a.safetensors'
    f.write_bytes(f.read_bytes()[:-1] + b'\7')
    (tmp_path/'1'/'kept_b.safetensors').unlink()
    assert ['kept_a.safetensors: altered' in s.check()[0], 'kept_b.safetensors: not there' in s.check()[1], len(s.check())] == [True,True,2]
    with pytest.raises(StoreError, match='altered since it was written'): s.kept('a')
    d = json.loads((tmp_path/'state.json').read_text())
    for kept in ({'a': [2,'00']}, {'a': 1}):
        (tmp_path/'state.json').write_text(json.dumps({**d, 'kept': kept}))
        with pytest.raises(StoreError, match='state.json: damaged'): AdapterStore(tmp_path)
    del d['kept']   # as an older run has it
    (tmp_path/'state.json').write_text(json.dumps(d))
    assert AdapterStore(tmp_path).kept('a') is None

def test_a_run_names_its_form_and_another_one_is_refused(tmp_path):
    s = new(tmp_path)
    a_round(s, 1, [0,1], [('a',1.)])
    f = tmp_path/'state.json'
    d,files = json.loads(f.read_text()),{o: o.read_bytes() for o in tmp_path.rglob('*') if o.is_file()}
    assert (d['format'],d['checksum']) == (1,'xxh3_64')
    for change,said in ((dict(format=2), '`format` 1, got 2'), (dict(format='1'), "`format` 1, got '1'"),
                        (dict(format=None), '`format` 1, got None'), (dict(format=2, round='a list of them'), '`format` 1, got 2'),
                        (dict(checksum='sha256'), "`checksum` 'xxh3_64', got 'sha256'")):
        f.write_text(json.dumps({**d, **change}))
        files[f] = f.read_bytes()
        for use in (lambda: AdapterStore(tmp_path), s.recover):
            with pytest.raises(StoreError) as e: use()
            assert str(e.value) == f'{f}: expected {said}: this run was written by another version of fedai'
        assert {o: o.read_bytes() for o in tmp_path.rglob('*') if o.is_file()} == files   # nothing was recovered from it

def test_a_run_from_before_the_form_was_named_goes_on(tmp_path):
    s = new(tmp_path)
    a_round(s, 1, [0,1], [('a',1.)])
    f = tmp_path/'state.json'
    d = json.loads(f.read_text())
    old = {k: v for k,v in d.items() if k not in ('format','checksum')}
    f.write_text(json.dumps(old))
    s = AdapterStore(tmp_path)
    s.recover()
    assert s.check() == [] and s.round == 1 and s.kept('a')['x'].item() == 1 and json.loads(f.read_text()) == old
    a_round(s, 2, [0])
    d = json.loads(f.read_text())
    assert (d['format'],d['checksum'],d['round']) == (1,'xxh3_64',2) and AdapterStore(tmp_path).check() == []

def test_a_damaged_row_is_named_whatever_its_file_is_called(tmp_path):
    "Rows of plain modules lie in `model.safetensors`."
    s = new(tmp_path, weights='model.safetensors')
    a_round(s, 1, [0])
    (tmp_path/'1'/'local_output_0'/'model.safetensors').unlink()
    with pytest.raises(StoreError, match='1/local_output_0/model.safetensors: not there$'): s.load(0)

@pytest.mark.parametrize('name', ['','../a','A','a b','a/b','a.b','ä'])
def test_names_are_plain(tmp_path, name):
    with pytest.raises(StoreError, match='kept: expected a name of'): new(tmp_path).keep(1, name, w(1))

def test_replace_leaves_what_is_linked(tmp_path):
    "Rows of the identity are links of the trained states, and equal rows links of each other."
    s = new(tmp_path, keep_trained=True)
    for i in range(4): s.save_trained(1, i, w(i))
    M = np.eye(4)
    M[:3] = [1/3,1/3,1/3,0]
    s.mix(range(4), M, 1)
    files = [s.path(i, 1)/s.weights for i in range(4)]
    assert os.path.samefile(files[0], files[2]) and os.path.samefile(files[3], s.path(3, 1, 'trained')/s.weights)
    s.replace(1, [2,3], s.layout.pack(w(9)))
    assert [load_file(f)['w'][0].item() for f in files] == [1,1,9,9]
    assert os.path.samefile(files[2], files[3]) and os.path.samefile(files[0], files[1])
    assert [load_file(s.path(i, 1, 'trained')/s.weights)['w'][0].item() for i in range(4)] == [0,1,2,3]
    s.replace(1, [3], s.layout.pack(w(8)))
    assert [s.load_row(i, 1).view(torch.float32)[0].item() for i in range(4)] == [1,1,9,8]   # each has its checksum
    s.commit(1, range(4))
    assert s.check() == [] and [s.load(i)['w'][0].item() for i in range(4)] == [1,1,9,8]
    assert sorted(o.name for o in (tmp_path/'1'/'local_output_3').iterdir()) == ['adapter_config.json','adapter_model.safetensors']
    with pytest.raises(StoreError, match="client 3: `w` has a value that isn't finite"): s.replace(1, [3], s.layout.pack(w(np.inf)))

def test_all_that_a_commit_names_is_flushed_before_it(tmp_path, monkeypatch):
    "Files and the folders that lead to them, kept and replaced ones too, since they were last written."
    s,flushed,at_commit = new(tmp_path),set(),[]
    fsync,rename = os.fsync,os.replace
    def note(fd):
        flushed.add(os.readlink(f'/proc/self/fd/{fd}'))
        return fsync(fd)
    def commit(src, dst):
        if str(dst).endswith('state.json'): at_commit.append(set(flushed))
        return rename(src, dst)
    for i in (0,1,2): s.save_trained(1, i, w(i))
    s.mix([0,1,2], np.full((3,3), 1/3), 1)
    monkeypatch.setattr(os, 'fsync', note)
    monkeypatch.setattr(os, 'replace', commit)   # from here: the flush of the mixed states, before they were replaced, doesn't count
    s.keep(1, 'a', w(5))
    s.replace(1, [0,2], s.layout.pack(w(7)))
    s.commit(1, [0,1,2])
    one = tmp_path.resolve()/'1'
    folders = [one/f'local_output_{i}' for i in (0,2)]
    need = {one, one.parent, one/'kept_a.safetensors', *folders, *(f/'adapter_model.safetensors' for f in folders)}
    assert len(at_commit) == 1 and {str(o) for o in need} <= at_commit[0], {str(o) for o in need} - at_commit[0]
