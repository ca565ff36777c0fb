"""The cost of having clients trained elsewhere: seconds a round, in this process, on Ray, and on Flower's simulation, all in this run.

    python benchmarks/exchange.py --out benchmarks/exchange.md

Each measurement is a process of its own: a run of the tiny model, whose LoRA's rank makes an adapter of the size that is named, one step of
one short example a client and round. So there is next to nothing to train, and what is left is the exchange. The median of the rounds after
the first is given: load, send, train, send back, save, mix, commit. All train one client at a time; Ray and the simulation have two workers
of one core.

here        `engine: sequential`
ray         `engine: ray`, workers that are there already
simulation  the same server, trainers and messages as on Flower between organisations, on Flower's simulation (its Ray backend)
"""
import argparse, json, os, subprocess, sys, tempfile, time
from pathlib import Path
from statistics import median

ROUNDS,RANKS = 6,{'1.8 MB': 992, '32 MB': 17920}

def data(K):
    "The same few examples for each of K clients."
    return [{'train': [dict(instruction='3 + 4 =', output='7')]*2, 'test': [dict(instruction='3 + 5 =', output='8')]} for _ in range(K)]

def timed(server):
    "Seconds of each round, and the bytes of a row."
    out = []
    with server.store.locked():
        for t in range(ROUNDS):
            began = time.perf_counter()
            server.one_round(t, server.selection[t])
            out.append(time.perf_counter() - began)
    assert not any('failed' in r for r in server.history)
    return dict(seconds=median(out[1:]), first=out[0], row=server.store.layout.nbytes)

def settings(K, rank, folder, **more):
    from fedai.config import FedConfig
    return FedConfig(model='tiny', device='cpu', num_clients=K, rounds=ROUNDS, local_step=1, batch_size=1, r=rank, graph='complete',
                     output_dir=folder, **{'engine': 'sequential', **more})

def answering(K):
    "A client app for Flower's simulation, in which a trainer answers for each client."
    import numpy as np, torch
    from flwr.app import Array, ArrayRecord, Message, RecordDict
    from flwr.clientapp import ClientApp
    from fedai.config import FedConfig
    from fedai.remote.trainer import Trainer
    trainers,client = {},ClientApp()
    def answer(msg, context):
        k = int(context.node_config['partition-id'])
        if k not in trainers:
            torch.set_num_threads(1)
            trainers[k] = Trainer(data(K)[k], FedConfig(device='cpu'))
        reply = trainers[k](msg.content['fedai']['message'].numpy().tobytes())
        return Message(RecordDict({'fedai': ArrayRecord({'message': Array(np.frombuffer(reply, np.uint8))})}), reply_to=msg)
    for kind in (client.query, client.train, client.evaluate): kind()(answer)
    return client

def simulated(cfg, K):
    "A run on Flower's simulation, timed."
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation
    from fedai.remote.flower import central, meet
    server,found = ServerApp(),[]
    @server.main()
    def main(grid, context):
        while len(list(grid.get_node_ids())) < K: time.sleep(.1)
        clients = [dict(name=str(i), node=n) for i,n in enumerate(sorted(grid.get_node_ids()))]
        meet(grid, clients)
        found.append(timed(central(cfg, clients, grid, [])))
    ray = {'address': 'local', 'num_cpus': 2, 'include_dashboard': False, '_node_ip_address': '127.0.0.1'}
    run_simulation(server, answering(K), K, backend_config={'client_resources': {'num_cpus': 1, 'num_gpus': 0.}, 'init_args': ray})
    return found[0]

def measure(how, K, rank):
    import torch, warnings
    from fedai.algorithms import get_server
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as d:
        if how == 'simulation': return simulated(settings(K, rank, d), K)
        more = dict(engine='ray', engine_args=dict(workers=2, cpus=1)) if how == 'ray' else {}
        return timed(get_server(settings(K, rank, d, **more), data(K), callbacks=[]))

def run(how, K, rank):
    quiet = {'OMP_NUM_THREADS': '1', 'FLWR_TELEMETRY_ENABLED': '0', 'RAY_USAGE_STATS_ENABLED': '0', 'FLWR_DISABLE_UPDATE_CHECK': '1'}
    with tempfile.TemporaryDirectory() as d:
        r = subprocess.run([sys.executable, __file__, '--one', how, str(K), str(rank), f'{d}/out'],
                           env={**os.environ, **quiet, 'FLWR_HOME': f'{d}/flwr'}, capture_output=True, text=True)
        if r.returncode: sys.exit(r.stderr[-3000:])
        return json.loads(Path(f'{d}/out').read_text())

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--out')
    ap.add_argument('--one', nargs=4)
    args = ap.parse_args()
    if args.one:
        Path(args.one[3]).write_text(json.dumps(measure(args.one[0], int(args.one[1]), int(args.one[2]))))
        sys.exit()
    about = '`python benchmarks/exchange.py --out benchmarks/exchange.md`. What is measured stands at the head of the script.'
    head = '| clients, an adapter | here, ms a round | ray, ms | simulation, ms | ray / here | simulation / here |'
    lines = ['# Exchange', '', about, '', f'{os.cpu_count()} cores.', '', head, '|---|---|---|---|---|---|']
    for K in (4,10):
        for size,rank in RANKS.items():
            got = {how: run(how, K, rank) for how in ('here','ray','simulation')}
            ms = {k: 1e3*v['seconds'] for k,v in got.items()}
            times = ' | '.join(f'{v:.0f}' for v in ms.values())
            ratios = f"{ms['ray']/ms['here']:.2f} | {ms['simulation']/ms['here']:.2f}"
            lines.append(f"| {K}, {got['here']['row']/1e6:.1f} MB | {times} | {ratios} |")
            print(lines[-1], flush=True)
    if args.out: Path(args.out).write_text('\n'.join(lines) + '\n')
