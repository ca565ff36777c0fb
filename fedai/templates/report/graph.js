// The graph of each round that is kept, with a slider between them; and the cross-evaluation, which is a matrix like the graph of many.

const bold = v => h('b', null, v);
const called = name => bdi(short(name, 40));

// What the run's files say of a graph, in words.
function graphFacts(step) {
  const f = step.facts, parts = [], several = step.rounds.length > 1;
  if (f.edges != null) parts.push(`${f.edges} edge${f.edges == 1 ? '' : 's'}`);
  if (f.components != null) parts.push(f.components == 1 ? 'all connected' : `${f.components} connected parts`);
  if (f.mean_degree != null) parts.push(`mean degree ${fixed(f.mean_degree, 2)}`);
  if (f.pull_mean != null) parts.push(`mean pull ${fixed(100*f.pull_mean, 1)} %`);
  const rounds = several ? `Rounds ${step.rounds[0]} to ${step.rounds.at(-1)}` : `Round ${step.rounds[0]}`;
  const whose = several ? 'last one’s clients' : 'round’s clients';
  return rounds + (parts.length ? `. Between the ${whose}: ${parts.join(', ')}` : '');
}

function graphNote(steps, all) {
  if (all <= 1 && steps.length <= 1) return 'The same in all rounds that are kept.';
  const here = all > steps.length ? `, ${steps.length} of them here` : '';
  return `The graph changes: ${all} different ones in the rounds that are kept${here}.`;
}

function drawGraph(place, run) {
  const {steps, order, all} = run.graph, last = steps.length - 1;
  const say = (a, b, v) => [called(a), ' learns from ', called(b), ': ', bold(v)];
  const many = () => new Matrix(steps.map(o => o.matrix), {label: `Graph of ${run.K} clients`, unit: 'weight', say});
  const view = steps[0].edges ? new Circle(steps, order, run) : many();
  const said = h('output', {class: 'note', style: 'display:block'}, graphFacts(steps[last]));
  const move = () => {
    view.showStep(+slider.value);
    said.textContent = graphFacts(steps[+slider.value]);
  };
  const slider = h('input', {type: 'range', min: 0, max: last, value: last, step: 1, 'aria-label': 'graph of a round', input: move});
  if (last > 0) place.append(h('div', {class: 'controls'}, h('label', null, 'Round', slider)));
  place.append(said, h('p', {class: 'note'}, graphNote(steps, all)), view.figure());
}

function drawCross(place, run) {
  const c = run.cross, metric = words(c.metric);
  const say = (a, b, v) => ['adapter of ', called(a), ' on the data of ', called(b), ': ', bold(v)];
  const view = new Matrix([c], {label: `Cross-evaluation of ${c.n} clients`, low: c.low, best: true, unit: metric, say});
  place.append(h('p', {class: 'note'},
    `The ${metric} of each client’s adapter (rows) on each client’s test data (columns); more colour is better. `
    + 'The ring is the best adapter for a client’s data. Columns, with the clients’ numbers, stand in the order of the rows.'),
    view.figure());
}
