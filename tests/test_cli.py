"The command line: what it prints, what it returns, and that a user's mistake is a line and never a traceback."
import fcntl, json, os, pty, re, resource, shlex, shutil, signal, struct, subprocess, sys, termios, time
from pathlib import Path
import numpy as np
import pytest
from fedai import cli
from fedai.cli import main
from fedai.config import ConfigError, FedConfig, RunError, field_help, load_config, yaml_value

FEDAI = [sys.executable, '-m', 'fedai']
ENV = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[1])}
CONFIG = """model: tiny
device: cpu
num_clients: 4
clients_per_task: 2
clients_per_batch: 2
tasks: {gcd: {max_value: 20}, products: {max_digits: 1}}
graph: tasks
train_size: 8
test_size: 4
rounds: 2
local_step: 1
max_new_tokens: 3
"""
PARSERS = dict(cli._walk(cli.get_parser()))

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A folder with a config and a run of it."
    d = tmp_path_factory.mktemp('made')
    (d/'c.yaml').write_text(CONFIG)
    assert main(['run', str(d/'c.yaml'), '--output_dir', str(d/'run')]) == 0
    return d

@pytest.fixture
def said(capsys):
    def said(*argv):
        capsys.readouterr()
        try: code = main(list(map(str, argv)))
        except SystemExit as e: code = e.code
        return code,*capsys.readouterr()
    return said

# --- what a user gets wrong ---

@pytest.mark.parametrize('argv,message', [
    ('', 'command'), ('runn', "did you mean 'run'?"), ('sho-data', "did you mean 'show-data'?"), ('flower kyes', "did you mean 'keys'?"),
    ('completion bsh', "did you mean 'bash'?"), ('completion', 'shell'), ('run --lr', 'argument --lr: expected one argument'),
    ('run --lr -1', '`lr`: expected a value above 0, got -1'), ('run --lr fast', '`lr`: expected a number'),
    ('run --learning_rate 1', '`--learning_rate`: expected a known option'), ('run --rouns=3', "did you mean '--rounds'?"),
    ('run --local-step 3', "did you mean '--local_step'?"), ('run --engine batchd', "did you mean 'batched'?"),
    ('run --graph_args {a:', '`graph_args`: expected a YAML value ('),
    ('run --name fedprox --algorithm_args {mu:0.1}', "expected a space after a colon, got 'mu:0.1'"),
    ('run --data ok.jsonl --partition iid --num_clients 2 --model tiny --target_modules q_prj,v_proj',
     "`target_modules`: expected names of layers in the model, such as ['down_proj'"),
    ('run --data ok.jsonl --partition iid --num_clients 2 --model tiny --selection availability',
     '`selection_args`: expected `available`, which availability needs, got {}'),
    ('run a.yaml b.yaml', '`b.yaml`: expected nothing more after `fedai run`'), ('run nowhere.yaml', '`config`: expected a YAML file'),
    ('run .', '`config`: expected a YAML file'), ('run bad.yaml', "`lrr`: expected a known field (did you mean 'lr'?)"),
    ('run broken.yaml', '`config`: expected readable YAML'), ('run list.yaml', '`field: value` lines'),
    ('run --data nowhere', '`data`: expected'),
    ('run --name miras --data ok.jsonl --partition iid --num_clients 2 --model tiny', "did you mean 'mira'?"),
    ('run --model nowhere/none --data ok.jsonl --partition iid --num_clients 2', 'nowhere/none'),
    ('run --data empty.jsonl --model tiny', 'line 1'), ('plan --jsn', "did you mean '--json'?"),
    ('plan --hours soon --data ok.jsonl', '`hours`'), ('show-data --clients  --data ok.jsonl', 'expected one argument'),
    ('show-data --examples x', 'invalid int value'), ('compare', '`tasks`'), ('compare bad.yaml', 'lrr'),
    ('compare --seeds a --data ok.jsonl', "`seeds`: expected a list of different whole numbers of at least 0, got ['a']"),
    ('compare --tune null', '`tune`: expected {label'), ('compare --sweep null', '`sweep`: expected {field'),
    ('run --data away/no.jsonl', '(seen from /'),
    ('run --model tiny --data ok.jsonl --partition iid --num_clients 2 --min_clients 3 --graph ring',
     '`min_clients`: expected at most 2, the clients of a round, got 3'),
    ('resume', 'RUN'), ('resume nowhere', '`run`: expected the folder of a run'), ('resume .', '`run`: expected the folder of a run'),
    ('resume RUN --lr 3', '`--lr`: expected a setting that may change here (`fedai resume --help` has them)'),
    ('resume RUN --rouns 3', "did you mean '--rounds'?"), ('resume RUN --rounds 1', '`rounds`: expected at least 2'),
    ('test nowhere', '`run`: expected the folder of a run'), ('test RUN --cross los', "did you mean 'loss'?"),
    ('test RUN --versus nowhere', '`versus`: expected the folder of a run that was tested'),
    ('test RUN --rounds 3', '`--rounds`: expected a setting that may change here'), ('graph nowhere', '`config`: expected a YAML file'),
    ('graph .', '`run`: expected the folder of a run'), ('graph RUN --to x.gif', '`to`: expected a name that ends in .png'),
    ('graph RUN --to no/x.png', '`to`: expected a file in a folder that exists'),
    ('graph fedavg.yaml', '`name`: expected an algorithm with a graph'),
    ('graph learned.yaml', '`graph`: expected one that is known before'), ('init ok.jsonl', "`file`: expected one that isn't there yet"),
    ('init no/x.yaml', '`file`: expected a file that can be written'), ('check nowhere', '`run`: expected the folder of a run'),
    ('algorithms --imports no.py', '`imports`: expected existing Python files (seen from /'),
    ('run --imports no.py --data ok.jsonl --partition iid --num_clients 2', '`imports`')])
def test_a_mistake_is_a_line(made, said, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    many = '\n'.join(json.dumps(dict(instruction=f'say {i}', output='x')) for i in range(40))
    files = {'bad.yaml': 'lrr: 1', 'broken.yaml': 'a: [', 'list.yaml': '[1]', 'empty.jsonl': '{"instruction": ""}', 'ok.jsonl': many,
             'fedavg.yaml': CONFIG + 'name: fedavg', 'learned.yaml': CONFIG.replace('graph: tasks', 'graph: learned')}
    for name,text in files.items(): Path(name).write_text(text)
    before = sorted(tmp_path.rglob('*'))
    code,out,err = said(*(str(made/'run') if o == 'RUN' else o for o in shlex.split(argv)))
    assert (code, out) == (2, '') and message in err and 'Traceback' not in err, (code, out, err)
    lines = err.splitlines()   # a second one where the command itself is wrong: which help says more
    assert err.startswith('fedai: ') and (len(lines) == 1 or len(lines) == 2 and lines[1].endswith('--help says more)'))
    assert sorted(tmp_path.rglob('*')) == before

@pytest.mark.parametrize('given,want', [
    ('--unseen_clients c1,c2', ['c1','c2']), ('--unseen_clients c1', ['c1']), ('--unseen_clients 2', 2), ('--adapt_layers 0,1', [0,1]),
    ('--adapt_layers 1', [1]), ('--adapt_layers last:2', 'last:2'), ('--target_modules q_proj,v_proj', ['q_proj','v_proj']),
    ('--target_modules all-linear', 'all-linear'), ('--target_modules .*[qv]_proj', '.*[qv]_proj'), ('--clients_per_batch 3', 3),
    ('--clients_per_batch auto', 'auto'), ('--imports a.py,b.py', ['a.py','b.py']), ('--system_prompt a,b', 'a,b'),
    ('--system_prompt null', None), ('--ranks 2,4', [2,4])])
def test_what_an_option_means(given, want):
    from fedai.cli import _overrides, get_parser
    assert list(_overrides(get_parser().parse_args(['run', *given.split(' ')])).values()) == [want]

def test_errors_that_are_foreseen_and_those_that_are_not(said, monkeypatch):
    from fedai.data.prompts import DataError
    from fedai.servers import RoundFailed
    from fedai.store.rows import StoreError
    from fedai.train.local import NonFiniteLoss
    def fails(e):
        def run(cfg): raise e
        monkeypatch.setattr(cli, 'run', run)
        return said('run')
    foreseen = [
        (ConfigError('lr', 'more', 1), 2), (DataError('no data'), 2), (ImportError("Ray is missing: pip install 'fedai[ray]'"), 2),
        (StoreError('damaged'), 1), (RoundFailed('too few'), 1), (NonFiniteLoss('nan'), 1), (RunError('no client could be tested'), 1),
        (OSError(28, 'No space left on device'), 1)]
    for e,code in foreseen:
        got,out,err = fails(e)
        assert (got, out, err) == (code, '', f'fedai: {e}\n' + ('  (--debug shows the traceback)\n' if code == 1 else ''))
        monkeypatch.setenv('FEDAI_DEBUG', '1')
        assert 'Traceback' in fails(e)[2] and fails(e)[0] == code
        monkeypatch.delenv('FEDAI_DEBUG')
        assert 'Traceback' in said('run', '--debug')[2] and 'FEDAI_DEBUG' not in os.environ
    for e in (ZeroDivisionError(), RuntimeError('a defect'), ValueError('a defect'), ImportError("cannot import name 'x'", name='fedai')):
        with pytest.raises(type(e)): fails(e)

def test_no_client_could_be_tested(made, said, monkeypatch):
    from fedai.engines import BatchedEngine
    monkeypatch.setattr(BatchedEngine, 'test', lambda self, pairs, scores=True: ((c, None, 'it is ill') for c,_ in pairs))
    code,out,err = said('test', made/'run')
    assert code == 1 and err.startswith('fedai: no client could be tested: client 0: it is ill; client 1') and 'Traceback' not in err

def test_ray_that_cannot_start():
    from types import SimpleNamespace
    from fedai.remote.ray import _connect
    def init(**kw): raise RuntimeError('no room for the object store')
    with pytest.raises(RunError, match="Ray couldn't start: no room for the object store"):
        _connect(SimpleNamespace(is_initialized=lambda: False, init=init), None)

def test_a_defect_keeps_its_traceback(tmp_path):
    (tmp_path/'mine.py').write_text('1/0')
    r = subprocess.run([*FEDAI, 'algorithms', '--imports', str(tmp_path/'mine.py')], env=ENV, capture_output=True, text=True)
    assert r.returncode == 1 and 'Traceback' in r.stderr and 'ZeroDivisionError' in r.stderr

# --- help ---

@pytest.mark.parametrize('path', PARSERS)
def test_every_command_has_help_and_an_example_that_parses(path, said):
    code,out,_ = said(*path.split(), '--help')
    assert code == 0 and max(map(len, out.splitlines())) <= 250
    for example in re.search('^example: (.*)$', out, re.M)[1].split('   #')[0].split(';'):
        words = shlex.split(example)
        if words[:2] == ['eval', '$(fedai completion bash)']: words = ['fedai','completion','bash']
        assert words[0] == 'fedai' and f" {' '.join(words[1:])} ".startswith(path + ' ' if path else ' ')
        args,unknown = cli.get_parser().parse_known_args(words[1:])
        assert not unknown

def test_help_has_every_command_once(said):
    out = said('--help')[1]
    for name in (p.strip() for p in PARSERS if p.count(' ') == 1): assert len(re.findall(rf'^  {name}  ', out, re.M)) == 1, name

def test_help_is_there_at_once():
    "By the time that the processor spends, which doesn't depend on what else the machine does."
    def seconds(*argv):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        r = subprocess.run([sys.executable, *argv], env=ENV, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert r.returncode == 0, r.stderr
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds('-m', 'fedai', '--help') < 1
    assert seconds('-c', 'import fedai') < .3
    code = ("import sys; from fedai.cli import main\ntry: main(['run', '--help'])\n"
            "except SystemExit: assert not {'torch','numpy','transformers','shtab'} & set(sys.modules)")
    assert seconds('-c', code) < 1

# --- JSON ---

@pytest.mark.parametrize('argv', ['algorithms', 'check RUN', 'graph RUN', 'graph CONFIG --to g.png', 'show-data CONFIG --plot p.png',
                                  'plan CONFIG --no-measure', 'plan CONFIG --seconds 1', 'test RUN', 'test RUN --cross loss'])
def test_json_is_all_there_is(made, said, tmp_path, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    Path('mine.py').write_text('print("imported")')
    there = dict(RUN=str(made/'run'), CONFIG=str(made/'c.yaml'))
    noisy = ['--imports','[mine.py]'] if 'CONFIG' in argv and 'graph' not in argv or 'test' in argv else []
    if argv == 'algorithms': noisy = ['--imports','mine.py']
    code,out,_ = said(*(there.get(o, o) for o in argv.split()), '--json', *noisy)
    def no(x): raise AssertionError(x)
    assert code == 0 and json.loads(out, parse_constant=no)

def test_json_of_a_failure_is_nothing(said):
    assert said('check', 'nowhere', '--json')[:2] == (2, '')

def test_a_damaged_run_in_json(made, said, tmp_path):
    shutil.copytree(made/'run', tmp_path/'run')
    p = next((tmp_path/'run'/'2').rglob('*.safetensors'))
    p.unlink()
    p.write_bytes(b'x')
    code,out,_ = said('check', tmp_path/'run', '--json')
    assert code == 1 and any(str(p) in o for o in json.loads(out)['damaged'])

def test_a_pipe_that_nobody_reads(tmp_path):
    r = subprocess.run(f"{shlex.join(FEDAI)} algorithms --json | true", shell=True, env=ENV, capture_output=True, text=True)
    assert r.stderr == ''

# --- resume, test, graph ---

def test_resume_is_the_same_run(made, said, tmp_path):
    "Two rounds and two more are four, to the bit, also where the folder has moved in between."
    whole = tmp_path/'whole'
    assert said('run', made/'c.yaml', '--output_dir', whole, '--rounds', 4)[0] == 0
    shutil.copytree(made/'run', tmp_path/'moved')
    code,out,err = said('resume', tmp_path/'moved', '--rounds', 4)
    assert code == 0 and 'round 4/4' in out, err
    others = ('config.yaml','.lock','timing.jsonl','curves.png','cross_evaluation.json','cross_evaluation.png')
    def files(d): return {str(o.relative_to(d)): o.read_bytes() for o in d.rglob('*') if o.is_file() and o.name not in others}
    assert files(tmp_path/'moved') == files(whole)
    cfg = load_config(tmp_path/'moved'/'config.yaml')
    assert cfg.output_dir == str(tmp_path/'moved') and cfg.rounds == 4

def test_test_again(made, said):
    "The scorecard is the one that the run ended with; what was given for the test isn't kept."
    config,card = [(made/'run'/o).read_text() for o in ('config.yaml','scorecard.json')]
    code,out,_ = said('test', made/'run')
    assert code == 0 and 'worst tenth' in out and (made/'run'/'scorecard.json').read_text() == card
    code,_,err = said('test', made/'run', '--cross', 'choice_accuracy')
    assert code == 2 and '`cross`: expected one of loss, ' in err
    assert err.strip().endswith("which all clients have here, got 'choice_accuracy'")
    code,out,_ = said('test', made/'run', '--versus', made/'run', '--cross', 'loss', '--json')
    got = json.loads(out)
    assert got['versus']['mean'] == got['mean'] and got['clients'] == json.loads(card)['clients']
    assert np.allclose(np.diag(got['cross']['matrix']), [o['loss'] for o in got['clients'].values()], rtol=1e-5)
    assert (made/'run'/'config.yaml').read_text() == config

def test_a_test_that_is_killed_leaves_the_config_as_it_was(made, said, monkeypatch):
    from fedai import commands
    seen,file = [],made/'run'/'config.yaml'
    before = file.read_text()
    def tell(server, cfg): seen.append((cfg.max_new_tokens, file.read_text()))   # what is there while it runs is what a kill leaves
    monkeypatch.setattr(commands, '_tell_test', tell)
    assert said('test', made/'run', '--max_new_tokens', '7')[0] == 0 and seen == [(7, before)]

def test_the_graph_is_that_of_the_run(made, said, tmp_path):
    for where in (made/'run', made/'c.yaml'):
        f = json.loads(said('graph', where, '--json', '--to', tmp_path/'g.png')[1])
        got = [f[k] for k in ('clients','edges','components','same_task','lambda_max','pull_max','stable')]
        assert got == [4, 2, 2, 1., 2., .5, True]   # by hand: two pairs
        from matplotlib.image import imread
        assert np.ptp(imread(tmp_path/'g.png')) > .5
    (tmp_path/'ring.yaml').write_text(CONFIG.replace('graph: tasks', 'graph: ring') + 'coupling: 0.2\n')
    code,out,_ = said('graph', tmp_path/'ring.yaml')
    assert code == 0
    for o in ('4, 4 edges, in 1 part', '2 each', '50% of the weight', 'largest eigenvalue of the Laplacian 4', '20.0% at most'):
        assert o in out, o

def test_a_learned_graph_is_known_afterwards(made, said, tmp_path):
    assert said('run', made/'c.yaml', '--graph', 'learned', '--output_dir', tmp_path/'run')[0] == 0
    f = json.loads(said('graph', tmp_path/'run', '--json')[1])
    A = np.load(tmp_path/'run'/'2'/'graph.npy')
    assert f['edges'] == (A > 0).sum()//2 and np.isclose(f['most_weight'], A.max())

# --- init, completion ---

def test_init_gives_what_runs(said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said('init')[0] == 0
    text = Path('fedai.yaml').read_text()
    assert said('init')[0] == 2 and Path('fedai.yaml').read_text() == text
    cfg = load_config('fedai.yaml')
    every = yaml_value(re.sub(r'^#(\w+: )', r'\1', text, flags=re.M))
    assert list(sorted(every)) == sorted(field_help()) and FedConfig(**every) == cfg
    assert all(v == field_help()[k][2] for k,v in every.items() if f'\n#{k}: ' in text)   # what is a comment has the default
    assert max(map(len, text.splitlines())) < 140
    assert said('run', 'fedai.yaml', '--model', 'tiny', '--rounds', 1, '--local_step', 1, '--device', 'cpu')[0] == 0
    assert Path('runs/mine/scorecard.json').exists()

@pytest.fixture(scope='module')
def bash(tmp_path_factory):
    d = tmp_path_factory.mktemp('bash')
    (d/'c.sh').write_text(cli.completion('bash'))
    (d/'x.jsonl').write_text('')
    def complete(line):
        words = line.split(' ')
        ask = f'COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words)-1}; _shtab_fedai; printf "%s\\n" "${{COMPREPLY[@]}}"'
        r = subprocess.run(['bash', '-c', f'. ./c.sh; {ask}; complete -p fedai'], capture_output=True, text=True, cwd=d)
        assert r.returncode == 0 and not r.stderr, r.stderr
        *found,how = r.stdout.split('\n')[:-1]
        assert '-F _shtab_fedai fedai' in how
        return [o for o in found if o]
    return complete

def test_bash_completes(bash):
    assert {'run','resume','test','flower'} <= set(bash('fedai ')) and bash('fedai re') == ['report','resume']
    for path,p in PARSERS.items():
        offered = set(bash(f'fedai{path} -'))
        assert offered >= {a.option_strings[-1] for a in p._actions if a.option_strings} and len(offered) > 1, path
    assert bash('fedai run --lora') == ['--lora_alpha','--lora_dropout'] and '--lr' not in bash('fedai resume x --')
    assert bash('fedai run --selection w') == ['weighted'] and bash('fedai run --use_rslora ') == ['true','false']
    assert bash('fedai completion z') == ['zsh'] and bash('fedai flower keys s') == ['server','site']
    assert bash('fedai run --data x') == ['x.jsonl'] and sorted(bash('fedai run ')) == ['c.sh','x.jsonl']   # files
    assert '--clients' in bash('fedai plan --json --')   # a flag takes no value

@pytest.mark.parametrize('shell', ['zsh','fish'])
def test_scripts_for_other_shells_name_everything(shell, said):
    code,out,_ = said('completion', shell)
    assert code == 0
    for path,p in PARSERS.items():
        for a in p._actions:
            for o in a.option_strings[-1:]: assert (o if shell == 'zsh' else f'-l {o[2:]} ') in out

def zsh_offers(script, line, folder):
    "What a zsh in a terminal shows for the second Tab."
    pexpect = pytest.importorskip('pexpect')
    zsh = pexpect.spawn('zsh', ['-f'], env={**os.environ, 'TERM': 'dumb'}, encoding='utf-8', timeout=30, dimensions=(200,200),
                        cwd=str(folder))
    zsh.sendline(f"autoload -Uz compinit; compinit -u -D; setopt noalwayslastprompt nobeep; PS1='READY''> '; eval \"$(cat {script})\"")
    zsh.expect('READY> ')
    zsh.send(line + '\t\t')
    zsh.expect('READY> ')
    zsh.close(True)
    lines = zsh.before.splitlines()[1:]
    if not any('  -- ' in o for o in lines): return dict.fromkeys(' '.join(lines).split(), '')
    return dict(re.split(r'  *-- ', o.strip(), maxsplit=1) for o in lines if '  -- ' in o)

def fish_offers(script, line, folder):
    r = subprocess.run(['fish', '-N', '-c', f"source {script}; complete -C '{line}'"], capture_output=True, text=True, cwd=folder)
    assert r.returncode == 0 and not r.stderr, r.stderr
    return dict(o.partition('\t')[::2] for o in r.stdout.splitlines())

@pytest.mark.parametrize('shell,offers', [('zsh', zsh_offers), ('fish', fish_offers)])
def test_other_shells_complete(shell, offers, tmp_path):
    if not shutil.which(shell): pytest.skip(f'{shell} is not installed')
    p = tmp_path/f'c.{shell}'
    p.write_text(cli.completion(shell))
    for name in ('x.jsonl','y.jsonl'): (tmp_path/name).write_text('')
    got = offers(p, 'fedai ', tmp_path)
    assert got.keys() >= {'run','resume','test','flower'} and got['run'].startswith('train, test and write a scorecard')
    assert got['chat'] == "talk to a client's model"
    assert set(offers(p, 'fedai run --engine ', tmp_path)) == {'auto','batched','sequential','ray','flower'}
    assert set(offers(p, 'fedai run --use_rslora ', tmp_path)) == {'true','false'}
    assert set(offers(p, 'fedai flower keys s', tmp_path)) == {'server','site'}
    got = offers(p, 'fedai resume x --', tmp_path)
    assert '--rounds' in got and '--lr' not in got
    assert got['--memory_gb'].startswith('memory for activations and client states, in GB; nothing: half')
    assert '--clients' in offers(p, 'fedai plan --json --', tmp_path)   # a flag takes no value
    assert {'x.jsonl','y.jsonl'} <= set(offers(p, 'fedai run --data ', tmp_path))

def test_completion_leaves_the_parser_as_it_was():
    parser = cli.get_parser()
    before = parser.format_help()
    assert cli.completion('bash', parser) == cli.completion('bash') and parser.format_help() == before
    assert parser.parse_args(['run', '--engine', 'none such']).engine == 'none such'   # what is given is checked by the config

def test_python_m_is_the_command():
    for argv in (['--version'], ['check', 'nowhere']):
        one,other = (subprocess.run([*o, *argv], env=ENV, capture_output=True, text=True)
                     for o in (FEDAI, [sys.executable, '-c', 'import sys; from fedai.cli import main; sys.exit(main())']))
        assert (one.returncode, one.stdout, one.stderr) == (other.returncode, other.stdout, other.stderr)
        assert one.returncode == (2 if argv[0] == 'check' else 0)

# --- stopping ---

def start(folder, *argv, **kw):
    return subprocess.Popen([*FEDAI, *map(str, argv)], env=ENV, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)

def until(f, process, seconds=120):
    end = time.monotonic() + seconds
    while not f():
        over = process.poll() is not None
        assert not over and time.monotonic() < end, process.stderr.read() if over else 'it took too long'
        time.sleep(.01)

@pytest.mark.parametrize('number,code', [(signal.SIGINT,130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)])
def test_a_stop_loses_nothing_and_says_how_to_go_on(tmp_path, said, monkeypatch, number, code):
    monkeypatch.chdir(tmp_path)
    Path('c.yaml').write_text(CONFIG.replace('local_step: 1', 'local_step: 40'))
    run = start(tmp_path, 'run', 'c.yaml', '--output_dir', 'my run')
    until(lambda: list(Path('my run').glob('1/.trained_*.json')), run)
    run.send_signal(number)
    out,err = run.communicate(timeout=120)
    assert run.returncode == code and 'Traceback' not in err, err
    assert 'Ctrl-C again ends at once' in err, err
    assert re.search(r'fedai: stopped: (round [12] of 2 is kept|none of 2 rounds is done yet)', err), err
    for t in ('1','2'): assert len(list(Path('my run').glob(f'{t}/.trained_*.json'))) % 2 == 0   # those that train together, both or none
    *_,go_on = err.strip().splitlines()
    assert go_on == "go on with: fedai resume 'my run'"
    assert said(*shlex.split(go_on.removeprefix('go on with: fedai ')))[0] == 0
    assert said('run', 'c.yaml', '--output_dir', 'whole')[0] == 0
    for o in Path('whole').rglob('*.safetensors'): assert o.read_bytes() == (Path('my run')/o.relative_to('whole')).read_bytes()
    for o in ('history.jsonl','scorecard.json'): assert (Path('whole')/o).read_text() == (Path('my run')/o).read_text()

def test_a_second_stop_ends_at_once(tmp_path):
    (tmp_path/'c.yaml').write_text(CONFIG.replace('local_step: 1', 'local_step: 100000'))
    run = start(tmp_path, 'run', 'c.yaml', '--output_dir', 'run')
    until(lambda: (tmp_path/'run'/'state.json').exists(), run)
    time.sleep(1)
    run.send_signal(signal.SIGINT)
    while 'again' not in run.stderr.readline(): assert run.poll() is None
    time.sleep(.5)
    assert run.poll() is None   # it trains on
    run.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert run.wait(timeout=60) == -signal.SIGINT and time.monotonic() - began < 10
    run.stdout.close(), run.stderr.close()

@pytest.mark.slow
def test_a_comparison_that_is_stopped_goes_on_with_its_command(tmp_path, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('c.yaml').write_text(CONFIG.replace('local_step: 1', 'local_step: 20'))
    argv = ['compare', 'c.yaml', '--algorithms', 'local, fedavg', '--seeds', '0', '--metric', 'loss', '--output_dir', 'both']
    run = start(tmp_path, *argv)
    until(lambda: list(Path('both').glob('local/*/cell.json')), run)
    run.send_signal(signal.SIGINT)
    out,err = run.communicate(timeout=120)
    how = "go on with: fedai compare c.yaml --algorithms 'local, fedavg' --seeds 0 --metric loss --output_dir both"
    assert run.returncode == 130 and err.strip().endswith(how), err
    go_on = err.strip().splitlines()[-1].removeprefix('go on with: fedai ')
    code,out,_ = said(*shlex.split(go_on))
    assert code == 0 and (Path('both')/'compare.json').exists()

def test_stopped_before_anything_is_kept(said, monkeypatch, tmp_path):
    import fedai.data.clients
    def stop(cfg): signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr(fedai.data.clients, 'get_client_data', stop)
    before = signal.getsignal(signal.SIGINT)
    code,out,err = said('run', '--output_dir', tmp_path/'run')
    assert (code, err) == (130, f"fedai: stopped before anything was kept in {tmp_path/'run'}\n")
    assert signal.getsignal(signal.SIGINT) is before

# --- progress ---

def test_a_log_file_has_no_control_characters(tmp_path, made):
    argv = [*FEDAI, 'run', str(made/'c.yaml'), '--output_dir', str(tmp_path/'run')]
    with open(tmp_path/'log', 'w') as f: assert subprocess.run(argv, env=ENV, stdout=f, stderr=f).returncode == 0
    text = (tmp_path/'log').read_text()
    assert not re.search(r'[\x00-\x09\x0b-\x1f\x7f]', text)
    assert re.search(r'^round 1/2  4 clients  loss \d+\.\d{3}  pull 50\.0%  \d+\.\d s  [\d,]+ tokens/s  [\d.]+ s left$', text, re.M), text
    assert re.search(r'^round 2/2  4 clients  .* tokens/s$', text, re.M)

def test_a_terminal_has_one_live_line(tmp_path, made):
    ours,theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
    argv = [*FEDAI, 'run', str(made/'c.yaml'), '--output_dir', str(tmp_path/'run'), '--local_step', '30']
    run = subprocess.Popen(argv, env=ENV, stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    text = b''
    while True:
        try: part = os.read(ours, 4096)
        except OSError: break
        if not part: break
        text += part
    assert run.wait() == 0
    bars = [o for o in re.split(r'[\r\n]+', text.decode()) if re.match(r'round \d/2 .*clients', o) and 'pull' not in o]
    assert any(re.fullmatch(r'round 1/2 .* 0/4 clients  .* left', o) for o in bars), bars[:5]
    live = r'round [12]/2 .* 2/4 clients  loss \d+\.\d{3}  [\d,]+ tokens/s  .* left'
    assert any(re.fullmatch(live, o) for o in bars), bars[:5]
    assert max(map(len, bars)) <= 80
