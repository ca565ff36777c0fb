// Of several runs one is in sight, that of the address's `#run`; it is drawn when it is first shown.

// What the page holds of each run while it is open: its number, the chosen client, the lists to choose from, and whom a name leads to.
data.runs.forEach((run, n) => {
  const said = Object.keys(run.said).map(Number), drawn = run.charts.flatMap(c => c.ids || []);
  Object.assign(run, {n, pick: null, pickers: [], linked: new Set([...said, ...drawn])});
});

// What is drawn into the places that the page has for it.
const draw = {charts: drawCharts, graph: drawGraph, table: drawTable, said: drawSaid, cross: drawCross};

function show() {
  const hash = decodeURIComponent(location.hash.slice(1)), asked = +(/^run(\d+)/.exec(hash) || [0, 0])[1];
  const n = Math.min(data.runs.length - 1, asked), run = data.runs[n];
  document.querySelectorAll('article.run').forEach(a => { a.hidden = +a.dataset.run !== n; });
  document.querySelectorAll('nav.runs a').forEach((a, i) => {
    if (i === n) a.setAttribute('aria-current', 'true');
    else a.removeAttribute('aria-current');
  });
  if (run && !run.drawn) {
    run.drawn = true;
    document.querySelectorAll(`#run${n} [data-draw]`).forEach(e => draw[e.dataset.draw](e, run));
  }
  redraw();
  const to = hash && document.getElementById(hash);
  if (to) to.scrollIntoView();
}

for (const e of document.querySelectorAll('[data-draw=beside]')) {
  e.append(h('div', {class: 'charts'}, data.beside.map(c => new LineChart(c, null).figure())));
}
show();
addEventListener('hashchange', show);

let width = 0;
new ResizeObserver(() => {
  if (Math.abs(document.body.clientWidth - width) <= 2) return;
  width = document.body.clientWidth;
  redraw();
}).observe(document.body);
