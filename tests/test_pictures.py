"Pictures, of clients and tasks that are called anything."
import io, warnings
import matplotlib.pyplot as plt, numpy as np, pytest
from fedai.evaluate.scorecard import plot_cross
from fedai.graphs import plot_graph, plot_network
from fedai.data.partition import plot_partition
from fedai.evaluate.tracking import plot_run

A = np.ones((6,6)) - np.eye(6)
HISTORY = [dict(round=t, loss={str(i): 1.+i for i in range(6)}, mean_loss=3.5) for t in range(3)]
PICTURES = dict(graph=lambda n: plot_graph(A, n).figure,
                network=lambda n: plot_network(A, n).figure,
                cross=lambda n: plot_cross(A, names=n).figure,
                partition=lambda n: plot_partition([[k] for k in range(6)], n, n).figure,
                run=lambda n: plot_run(HISTORY, A, n))
NAMES = {'formulas': ['from $5 to $9',r'$\frac{$','$','a_b','x^2',r'\n'],
         'underscores': [f'_{i}' for i in range(6)],
         'letters that the font lacks': [f'東京 🏥 {i}' for i in range(6)],
         'control characters': [f'tab\t\x07line\n{i}' for i in range(6)],
         'long': ['a hospital of ' + 'a rather long name, '*9 + f'ward {i}' for i in range(6)]}

@pytest.mark.parametrize('names', NAMES)
@pytest.mark.parametrize('picture', PICTURES)
def test_any_name_can_be_drawn(picture, names):
    fig = PICTURES[picture](NAMES[names])
    with warnings.catch_warnings():
        warnings.simplefilter('error')   # of glyphs that are missing, of a layout that fails
        fig.savefig(io.BytesIO())
    ax,legends = fig.axes[0],[o for a in fig.axes for o in [a.get_legend()] if o] + fig.legends
    panels = len([a for a in fig.axes if a.get_title()] or [0])
    assert ax.get_window_extent().width > .3*fig.bbox.width/panels   # the names leave room for what they name
    seen = [t.get_text() for o in legends for t in o.get_texts()] or [t.get_text() for t in ax.get_yticklabels()]
    assert len(set(seen) - {'mean'}) == 6   # and can be told apart
    if names == 'formulas':
        texts = [t.get_text() for t in [*ax.get_yticklabels(), *(t for o in legends for t in o.get_texts())]]
        assert seen and not any(t and plt.matplotlib.cbook.is_math_text(t) for t in texts)
    plt.close(fig)

@pytest.mark.parametrize('K', [1,16,100,200])
def test_numbers_under_a_graph_do_not_touch(K):
    ax = plot_graph(np.zeros((K,K)))
    ax.figure.canvas.draw()
    b = [t.get_window_extent() for t in ax.get_xticklabels()]
    assert all(p.x1 + 1 < q.x0 for p,q in zip(b, b[1:]))
    plt.close(ax.figure)
