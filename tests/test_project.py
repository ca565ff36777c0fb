"What holds of the project's files."
import configparser, inspect, re, subprocess, sys
import pytest
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import rooms
NOTEBOOKS,MODULES,code = rooms.notebooks(),rooms.modules(),rooms.cells

def test_a_room_imports_only_rooms_above_it():
    order = {m: k for k,m in enumerate(MODULES)}
    assert {rooms.room(m) for m in MODULES} == set(rooms.ROOMS)
    for name,p in MODULES.items():
        for used in rooms.imports(p): assert order[used] < order[name], f'{name} imports {used}, which stands below it'

def test_numbers_order_a_folder():
    for folder in {p.parent for p in NOTEBOOKS}:
        numbers = [int(p.stem.split('_')[0]) for p in rooms.notebooks(folder) if p.parent == folder and p.stem != 'index']
        assert numbers == sorted(set(numbers)), folder

def test_a_notebook_is_called_as_its_module():
    for name,p in MODULES.items(): assert name.split('.') == [*p.parent.relative_to(rooms.NBS).parts, p.stem.split('_', 1)[1]]

# ---- the map in CONTRIBUTING.md

def rows_of(first):
    "Rows of the table in CONTRIBUTING.md whose first heading is this, a list of cells each."
    text = (ROOT/'CONTRIBUTING.md').read_text(encoding='utf-8')
    lines = text.split(f'| {first} |')[1].split('\n\n')[0].splitlines()[2:]
    return [[o.strip() for o in line.strip('|').split(' | ')] for line in lines]

def first_names(first): return [row[0].strip('`').split('(')[0] for row in rows_of(first)]

def test_the_map_has_every_room_and_its_tests():
    assert first_names('room') == list(rooms.ROOMS)
    tests = {p.stem for p in (ROOT/'tests').glob('test_*.py')}
    named = [re.findall(r'`(test_\w+)`', row[2]) for row in rows_of('room')]
    assert all(named) and {o for some in named for o in some} <= tests
    text = (ROOT/'CONTRIBUTING.md').read_text(encoding='utf-8')
    assert not {o for o in tests if f'`{o}`' not in text}

def test_the_map_has_every_hook():
    import fedai.algorithms
    from fedai.hooks import Algorithm, algorithm_classes, hooks
    assert fedai.algorithms   # its classes are known from then on
    assert first_names('what a class may override') == list(hooks)
    line = inspect.signature(Algorithm.__init_subclass__).parameters
    assert sorted(first_names('on the class line')) == sorted(k for k,p in line.items() if p.kind != p.VAR_KEYWORD)
    assert {row[3].strip('`') for k in ('what a class may override','on the class line') for row in rows_of(k)} <= set(algorithm_classes)

def test_places_named_in_the_map_are_there():
    "`Class.method` and `function` (`module`) in the ten lines of a round."
    text = (ROOT/'CONTRIBUTING.md').read_text(encoding='utf-8').split('### A round')[1].split('### The rooms')[0]
    import fedai
    for cls,name in re.findall(r'`([A-Z]\w+)\.(\w+)`', text): assert callable(getattr(getattr(fedai, cls), name)), f'{cls}.{name}'
    for name,module in re.findall(r'`([\w.]+)` \(`([a-z_.]+)`\)', text):
        assert hasattr(import_module(f'fedai.{module}'), name.split('.')[0]), name

NAMES = """
AdapterStore AnswerLoss BaseClient BaseServer BatchedEngine Bleu BudgetSpent Callback Chat Chrf ClientData Client_ditto Client_mira
Client_prox Comparison ConfigError Curves DataError Draws Encoded ExactMatch ExampleTable Examples FedConfig FlowerEngine History
Layout LazyList LiveState LoraStack Member ModuleStack ModuleTask NonFiniteLoss Prefix Privacy Progress Prompter RayEngine Recipe Rouge
RoundFailed RunError SafeStop SequentialEngine Server_cfl Server_ditto Server_fedavg Server_fedavg_ft Server_fedex Server_fedprox
Server_fedsa Server_fedu Server_ffa Server_flora Server_hetlora Server_ifca Server_local Server_mira Server_rolora Source Stopped
StoreError SumEngine TextTask TokenF1 TokenTable Tokens Trackers Trainer UserError adapter_files add_lora add_to_base aligned
answer_losses as_row ask at_rest atomic_file availability_selection average_matrix base_of batch_indices bigbench_example bipartition
by_length cache_dir can_write central check check_config check_example check_graph check_messages check_push check_settings check_sums
checked_keys checkpointed client_names commonest_answer compare complete_graph completion config_text conversation_examples convert_gguf
cosines count_saved cross_evaluation cut_even cut_passes deal_dirichlet deal_iid deal_pathological deal_quantity deal_shards
decoder_layers dump_config duration effective_pull embedded_smollm2 encode_all erdos_renyi_graph estimate even_groups existing
export_adapter export_all facts fast_bf16 field_help fill_template find_client find_files find_model fit_embeddings flower_engine folded
for_all for_group gain_table gains gate get_accelerator get_base_model get_class get_client_data get_device get_engine get_model
get_optimizer get_parser get_server get_tokenizer graph_facts greedy group_limit headline hold_out holdout import_user_code
inner_products key_seed keyed_dropout keyed_torch knn_graph label_codes laid_out laplacian layout_key learned_positions list_algorithms
load_base load_config load_graph local_steps lora_norm lora_similarity machine main make_partition make_plan
make_server_keys make_site_key max_degree mean_adapter mean_rows mean_states meet memory_bytes mira_matrix mix_rows model_card
module_reason natural near near_duplicates neighbourhood_selection new_cache new_token_ids newcomer newcomer_table normalise_graph
numbers_of offload_saved only_one open_run open_sum opt pack pack_batch pad_batch paired_bootstrap partition_table pass_limit
picture_text plan_table plot_cross plot_graph plot_network plot_partition plot_run plural power_of_choice product_mix prompt_batch
push_folder question_key question_keys question_text random_graph read_clients read_records read_row read_run read_scores read_table
read_yaml ring_graph rng round_lr round_robin_selection row_tensors run run_chat run_compare run_config run_export run_flower run_graph
run_init run_plan run_report run_show_data run_site run_test samples score_table scorer serve serve_command serve_federation server_step
short show_algorithms show_data show_example similarity_graph split split_ranks spread stack_reason state_similarity step_limit subgraph
sum_of summarise summed_tensors sync_dir task_graph task_scores test_clients test_newcomers text_scores token_facts trackers train_batch
uniform_selection unpack weighted_selection with_numbers write_json write_report write_row write_text yaml_value
"""   # what `from fedai import X` gives, and must go on to give

def test_no_name_is_lost():
    import fedai
    assert set(NAMES.split()) <= set(dir(fedai))

def test_no_name_is_exported_twice():
    seen = {}
    for name in MODULES:
        for s in import_module(f'fedai.{name}').__all__: assert seen.setdefault(s, name) == name, f'{s}: {seen[s]} and {name}'

def test_no_algorithm_is_known_by_name():
    named = r"""(algorithm|cfg\.name|self\.name|server\.name)\b['"\])]*\s*(==|!=|in\b)\s*[\[({]?['"]"""
    assert re.search(named, "x if o['algorithm'] == 'mira' else y") and re.search(named, "if cfg.name in ('a','b'):")
    for p in (ROOT/'fedai').rglob('*.py'): assert not re.search(named, p.read_text()), p

def exported():
    for name in MODULES:
        mod = import_module(f'fedai.{name}')
        for s in mod.__all__:
            if inspect.isclass(o := getattr(mod, s)) or inspect.isfunction(o): yield f'{name}.{s}',o

@pytest.mark.parametrize('name,obj', list(exported()), ids=lambda o: o if isinstance(o, str) else '')
def test_every_export_says_what_it_is(name, obj):
    if hasattr(obj, '_fields'): return   # namedtuples
    assert obj.__doc__ and not obj.__doc__.startswith(obj.__name__ + '('), name

def test_no_export_has_the_name_of_a_module():
    "Or `from fedai import name` would be one the first time and the other after it."
    assert not {n.split('.')[-1] for n,_ in exported()} & {rooms.room(m) for m in MODULES}

def test_every_export_is_used_in_its_notebook():
    "Shown or asserted, in a cell that isn't exported, or in a later notebook's."
    shown = '\n'.join(s for p in NOTEBOOKS for s in code(p) if not re.search(r'^#\| export', s, re.M))
    inside = '\n'.join(s for p in NOTEBOOKS for s in code(p))
    for name,_ in exported():
        s = name.split('.')[-1]
        assert re.search(rf'\b{s}\b', shown) or len(re.findall(rf'\b{s}\b', inside)) > 1, f'{name} is used nowhere'

def test_versions_are_pinned_for_every_requirement():
    cfg = configparser.ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini')
    norm = lambda s: re.sub(r'[-_.]+', '-', s).lower()
    pins = {norm(o.split('==')[0]) for o in (ROOT/'constraints.txt').read_text().splitlines() if '==' in o}
    wanted = ' '.join(cfg['DEFAULT'][k] for k in ('requirements','dev_requirements','demo_requirements','docs_requirements'))
    for r in wanted.split(): assert norm(re.split(r'[<>=!~]', r)[0]) in pins, r

def test_everything_exported_comes_from_fedai_lazily():
    program = '; '.join(['import sys, fedai', 'fedai.FedConfig', 'print("torch" in sys.modules)',
                         'fedai.Server_mira', 'fedai.text_scores', 'print("torch" in sys.modules)',
                         'print("evaluate" in sys.modules or "transformers" in sys.modules)', 'print("Client_mira" in dir(fedai))'])
    out = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, cwd=ROOT)
    assert out.stdout.split() == ['False','True','False','True'], out
    import fedai
    with pytest.raises(AttributeError, match="no attribute 'nothing'"): fedai.nothing

def test_readme_and_quickstart_show_the_same_job():
    "The README's Python is what the quickstart runs, with another model and folder."
    def job(p, first): return next(s for s in code(p) if first in s)
    strip = lambda s: re.sub(r"model='\w+'|output_dir=[^,]+", '', re.sub(r'^#\|.*\n', '', s, flags=re.M)).strip()
    mark = 'from fedai import FedConfig'
    assert strip(job(ROOT/'nbs'/'index.ipynb', mark)) == strip(job(rooms.NBS/'tutorials'/'00_quickstart.ipynb', mark))
    assert strip(job(ROOT/'nbs'/'index.ipynb', mark)).count('\n') < 12
