"Reads everything from settings.ini, which nbdev also reads, so that each fact stands in one place."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

cfg = ConfigParser(delimiters=['='])
cfg.read(Path(__file__).parent/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
extras = {name: cfg[f'{name}_requirements'].split()
          for name in ('dev', 'demo', 'quant', 'partition', 'ray', 'flower', 'privacy', 'track', 'docs')}

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    long_description=(Path(__file__).parent/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], keywords=cfg['keywords'].split(),
    license='Apache-2.0', python_requires='>=' + cfg['min_python'],
    packages=find_packages(include=['fedai', 'fedai.*']), package_data={'fedai': ['templates/**/*']},
    install_requires=cfg['requirements'].split(), extras_require=extras,
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': ['fedai=fedai._modidx:d']},
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Developers', 'Intended Audience :: Science/Research',
                 'Programming Language :: Python :: 3', 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
)
