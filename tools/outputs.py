"""Runs notebooks and stores what their cells show, for the documentation and for who reads them on the web.

    python tools/outputs.py                      # all notebooks
    python tools/outputs.py tutorials/00_quickstart ...    # some

Cells that tests pass over (`tst_flags` in settings.ini) aren't run, and keep what is stored. Warnings and progress bars aren't stored, and
the names of temporary folders are replaced, so that a notebook run twice shows the same but for seconds.
"""
import base64, configparser, io, os, re, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import rooms

def without_folders(lines): return [re.sub(re.escape(tempfile.gettempdir()) + r'/tmp\w+', '/tmp/folder', o) for o in lines]

def smaller(png):
    "A picture with at most 256 colours: a quarter of the bytes, and no difference to see."
    from PIL import Image
    out = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB').quantize(256).save(out, 'png', optimize=True)
    return base64.b64encode(out.getvalue()).decode() + '\n'

def shown(output):
    "What is kept of an output, or nothing."
    if output['output_type'] == 'stream': return None if output['name'] == 'stderr' else {**output, 'text': without_folders(output['text'])}
    if 'data' not in output: return output
    return {**output, 'data': {k: without_folders(v) if k.startswith('text/') else smaller(v) if k == 'image/png' else v
                               for k,v in output['data'].items()}}

def run(path, flags):
    "Run the notebook at `path` and write it with its outputs."
    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell
    nb,shell = read_nb(path),CaptureShell()
    os.chdir(path.parent)
    sys.path.insert(0, str(ROOT))
    for cell in nb.cells:
        if cell.cell_type != 'code' or flags & set(re.findall(r'^#\|\s*(\w+)\s*$', cell.source, re.M)): continue
        outputs = shell.run(cell.source)
        if shell.exc: sys.exit(f'{path.name}: {shell.exc!r} in\n{cell.source}')
        cell.outputs = [o for o in map(shown, outputs) if o]
    write_nb(nb, path)

if __name__ == '__main__':
    if sys.argv[1:2] == ['--one']:
        cfg = configparser.ConfigParser(delimiters=['='])
        cfg.read(ROOT/'settings.ini')
        run(Path(sys.argv[2]), set(cfg['DEFAULT']['tst_flags'].split()))
    else:
        for p in [rooms.NBS/f"{n.removesuffix('.ipynb')}.ipynb" for n in sys.argv[1:]] or rooms.notebooks():
            print(p.relative_to(rooms.NBS), flush=True)
            if subprocess.run([sys.executable, __file__, '--one', str(p)], cwd=ROOT).returncode: sys.exit(1)
            subprocess.run([str(Path(sys.executable).parent/'nbdev_clean'), '--fname', str(p)], cwd=ROOT, check=True)
