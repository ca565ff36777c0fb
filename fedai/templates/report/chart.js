// A chart: rounds below, one or more lines, and where it is about clients a line for each of them. Of more than sixty clients,
// bands have the middle of them, and a client's own line is drawn when it is asked for.
// The arrow keys go from round to round, and up and down from client to client.

const MOST_LINES = 60;                  // clients with a line each
const DOTTED = 30;                      // rounds of which each value is a dot as well
const DASHES = ['', '5 3', '2 2'];      // of lines that share a colour
const BORDERS = ['solid', 'dashed', 'dotted'];
const EDGE = {height: 220, left: 48, right: 12, top: 8, bottom: 28};

// Colour, width and dashes of a chart's lines: the mean of clients in black; runs beside each other by the group that they belong to.
function lineStyles(c) {
  if (c.ids && c.ids.length) return c.lines.map(() => ({colour: 'var(--fg)', width: 2.4, dash: ''}));
  if (!c.overlaid) return c.lines.map((l, j) => ({colour: `var(--c${j})`, width: 2, dash: ''}));
  return c.lines.map(l => ({colour: `var(--c${l.group % 8})`, width: 1.8, dash: DASHES[Math.floor(l.group/8) % 3]}));
}

// How many decimals a chart's values have.
function chartDigits(c) {
  if (c.whole) return 0;
  return c.percent ? 1 : decimals([...c.lines.flatMap(l => l.y), ...(c.cy || []).flat()]);
}

// Least and largest value of the vertical axis. It begins at 0, unless all values lie close together and far from it.
function chartLimits(c, drawn) {
  const bands = (c.bands || []).map(b => [b.lo, b.hi]);
  const values = [c.lines.map(l => l.y), bands, drawn.length ? c.cy : []].flat(3).filter(some);
  let lo = Infinity, hi = -Infinity;
  for (const v of values) { lo = Math.min(lo, v); hi = Math.max(hi, v); }
  if (!(lo <= hi)) lo = hi = 0;
  lo = c.bars || c.whole || c.percent || lo < .4*hi ? Math.min(0, lo) : lo - .1*(hi - lo || hi);
  return [lo, hi + .05*(hi - lo || 1)];
}

// What the colours of a chart stand for.
function chartKeys(c, run, drawn) {
  if (c.overlaid) {
    const groups = [...new Set(c.lines.map(l => l.group))];
    return groups.map(j => key(`var(--c${j % 8})`, c.overlaid[j], '', BORDERS[Math.floor(j/8) % 3]));
  }
  if (c.ids && c.ids.length) {
    const bands = (c.bands || []).map((b, j) => key(`rgb(47 127 214 / ${.2 + .2*j})`, b.name, 'box'));
    return [key('var(--fg)', 'mean'), ...bands, ...(drawn.length ? taskKeys(run) : [])];
  }
  return c.lines.length > 1 ? c.lines.map((l, j) => key(`var(--c${j})`, l.name)) : [];
}

class LineChart extends Plot {
  constructor(c, run) {
    super('');
    this.c = c;
    this.run = run;
    this.ids = c.ids || [];
    this.drawn = this.ids.length <= MOST_LINES ? this.ids : [];
    this.styles = lineStyles(c);
    this.digits = chartDigits(c);
    [this.lo, this.hi] = chartLimits(c, this.drawn);
    this.near = null;   // of the clients' lines: the height that the pointer is at, or the line that the keys are at
    this.plot.setAttribute('aria-label', this.label());
  }

  figure() {
    const {c} = this, keys = chartKeys(c, this.run, this.drawn);
    return h('figure', null,
      h('figcaption', null, h('b', null, c.title), ' ', h('span', {class: 'note'}, c.unit)),
      this.plot,
      keys.length ? h('div', {class: 'legend'}, keys) : null,
      c.thinned ? h('p', {class: 'note'}, `Lines of single clients have ${c.cx.length} of ${c.x.length} rounds.`) : null);
  }

  label() {
    const {c} = this, first = c.lines[0], seen = first.y.filter(some);
    const ends = `: ${first.name} ${this.value(seen[0])} at first, ${this.value(seen.at(-1))} at last`;
    return `${c.title}, ${c.x.length} rounds` + (c.overlaid ? `, ${c.lines.length} runs` : ends) + '. Arrow keys say the values.';
  }

  value(v) { return this.c.percent ? fixed(100*v, this.digits) + ' %' : fixed(v, this.digits); }

  // Where a round and a value lie.
  x(round) {
    const {c, W} = this, half = c.bars ? .5 : 0, inset = c.bars ? 0 : 10;
    const first = c.x[0] - half, last = c.x.at(-1) + half;
    if (!(last > first)) return (EDGE.left + W - EDGE.right)/2;
    return EDGE.left + inset + (W - EDGE.left - EDGE.right - 2*inset)*(round - first)/(last - first);
  }
  y(value) {
    const {height, top, bottom} = EDGE;
    return height - bottom - (height - bottom - top)*(value - this.lo)/(this.hi - this.lo);
  }

  // A line through the values that there are, interrupted where one is missing.
  path(rounds, values) {
    let d = '', pen = 'M';
    rounds.forEach((x, t) => {
      if (values[t] == null) return;
      d += `${pen}${this.x(x).toFixed(1)} ${this.y(values[t]).toFixed(1)}`;
      pen = 'L';
    });
    return d;
  }

  // The client that is chosen for the run, as a line of this chart.
  picked() {
    const k = this.run && this.run.pick != null ? this.ids.indexOf(this.run.pick) : -1;
    return k >= 0 ? k : null;
  }

  draw() {
    this.measure();
    const {c} = this, svg = s('svg', {viewBox: `0 0 ${this.W} ${EDGE.height}`, 'aria-hidden': true}, this.axes());
    put(svg, null, (c.bands || []).map((b, j) => this.band(b, j)));
    put(svg, null, this.drawn.map((i, k) => this.clientLine(i, k)));
    put(svg, null, c.lines.map((l, j) => c.bars ? this.bars(l, j) : this.line(l, j)));
    put(svg, null, [this.pickedLine(), this.cross()]);
    this.show(svg);
  }

  axes() {
    const {c, W} = this, {height, left, right, bottom} = EDGE, below = height - bottom + 17;
    const values = ticks(this.lo, this.hi, 5, c.whole), label = this.axisLabel(values);
    const rounds = ticks(c.x[0], c.x.at(-1), Math.max(2, (W - left - right)/60), true);
    return [
      values.map(y => [
        s('path', {class: 'axis', d: `M${left} ${this.y(y)}H${W - right}`}),
        s('text', {x: left - 6, y: this.y(y) + 4, 'text-anchor': 'end'}, label(y)),
      ]),
      rounds.map(x => s('text', {x: this.x(x), y: below, 'text-anchor': 'middle'}, x)),
      s('text', {x: left - 6, y: below, 'text-anchor': 'end'}, 'round'),
    ];
  }

  // What writes a value of the axis: with the decimals that its step has, and 1.2M where it would be long.
  axisLabel(values) {
    if (this.c.percent) {
      const digits = Math.max(0, decimals([values[1] - values[0]]) - 2);
      return y => fixed(100*y, digits) + ' %';
    }
    if (Math.max(...values.map(Math.abs)) >= 1e5) return y => (y || 0).toLocaleString('en', {notation: 'compact'});
    const step = values[1] - values[0];
    const digits = values.length > 1 ? clamp(-Math.floor(Math.log10(step) + 1e-9), 0, 6) : this.digits;
    return y => fixed(y, digits);
  }

  band(b, j) {
    const {c} = this, there = range(c.x.length).filter(t => b.lo[t] != null);
    const above = there.map(t => `${this.x(c.x[t])} ${this.y(b.hi[t])}`);
    const below = there.reverse().map(t => `${this.x(c.x[t])} ${this.y(b.lo[t])}`);
    return s('path', {style: `fill:rgb(47 127 214 / ${.2 + .1*j})`, d: 'M' + [...above, ...below].join('L') + 'Z'});
  }

  dot(x, y, r, style) { return y == null ? null : s('circle', {cx: this.x(x), cy: this.y(y), r, style}); }

  clientLine(i, k) {
    const {c} = this, col = colour(this.run, i), opacity = this.picked() == null ? .75 : .25;
    return [
      s('path', {class: 'l', style: `stroke:${col};stroke-width:1;opacity:${opacity}`, d: this.path(c.cx, c.cy[k])}),
      c.cx.length < DOTTED ? c.cx.map((x, t) => this.dot(x, c.cy[k][t], 1.6, `fill:${col};opacity:${opacity}`)) : null,
    ];
  }

  // A value is a dot as well where there are few, so that a run of one round has something to see.
  line(l, j) {
    const {c} = this, {colour, width, dash} = this.styles[j];
    const dotted = c.x.length < DOTTED && !c.overlaid || l.y.filter(some).length == 1;
    const style = `stroke:${colour};stroke-width:${width};stroke-dasharray:${dash || 'none'}`;
    return [
      s('path', {class: 'l', style, d: this.path(c.x, l.y)}),
      dotted ? l.y.map((y, t) => this.dot(c.x[t], y, 2.4, `fill:${colour}`)) : null,
    ];
  }

  bars(l, j) {
    const width = Math.max(1, .7*(this.x(1) - this.x(0))), style = `fill:${this.styles[j].colour};opacity:.8`;
    const bar = (y, t) => s('rect', {x: this.x(this.c.x[t]) - width/2, width, y: this.y(y), height: this.y(this.lo) - this.y(y), style});
    return l.y.map((y, t) => y == null ? null : bar(y, t));
  }

  pickedLine() {
    const {c} = this, p = this.picked();
    if (p == null) return null;
    const col = this.drawn.length ? colour(this.run, this.ids[p]) : 'var(--c1)';
    return s('path', {class: 'l picked', style: `stroke:${col};stroke-width:2.6`, d: this.path(c.cx, c.cy[p])});
  }

  cross() {
    if (this.at == null) return null;
    return s('path', {class: 'cross', d: `M${this.x(this.c.x[this.at])} ${EDGE.top}V${EDGE.height - EDGE.bottom}`});
  }

  // What is said: the round, its values, and of the clients' lines the one that is near.
  say() {
    if (this.at == null) this.tip.replaceChildren();
    this.draw();
    if (this.at == null) return;
    const round = this.c.x[this.at];
    const kids = [h('div', null, `round ${round}`), ...this.saidLines(), this.saidClient(round)].filter(some);
    this.tipAt(this.x(round), EDGE.top + 14, ...kids);
  }

  said(value, name, col) {
    return h('div', null, h('span', {class: 'key', style: `color:${col}`}), bdi(short(name, 40)), ' ', h('b', null, this.value(value)));
  }

  saidLines() {
    const {c, at, near} = this;
    const rows = c.lines.map((l, j) => ({value: l.y[at], name: l.name, colour: this.styles[j].colour})).filter(r => r.value != null);
    if (c.overlaid && near && near.y != null) {   // of many runs those that the pointer is nearest to
      rows.sort((a, b) => Math.abs(a.value - near.y) - Math.abs(b.value - near.y)).splice(8);
    }
    return rows.map(r => this.said(r.value, r.name, r.colour));
  }

  saidClient(round) {
    const {c, near} = this, t = c.cx ? c.cx.indexOf(round) : -1;
    if (t < 0 || !near) return null;
    const value = k => c.cy[k][t];
    const there = range(this.ids.length).filter(k => value(k) != null).sort((a, b) => value(a) - value(b));
    if (!there.length) return null;
    if (near.y != null) near.k = least(there, k => Math.abs(value(k) - near.y));
    else if (near.step) {
      const j = there.indexOf(near.k);
      near.k = there[j < 0 ? 0 : clamp(j + near.step, 0, there.length - 1)];
    }
    if (!there.includes(near.k)) return null;
    const id = this.ids[near.k];
    return this.said(value(near.k), nameOf(this.run, id), colour(this.run, id));
  }

  find(px, py) {
    const {c, lo, hi} = this, {height, top, bottom} = EDGE;
    this.near = {y: lo + (height - bottom - py)/(height - bottom - top)*(hi - lo)};
    this.go(least(range(c.x.length), t => Math.abs(this.x(c.x[t]) - px)));
  }

  step(name) {
    const n = this.c.x.length, {at, near} = this;
    const to = {
      ArrowLeft: (at ?? n) - 1,
      ArrowRight: (at ?? -1) + 1,
      Home: 0,
      End: n - 1,
      ArrowUp: at ?? n - 1,
      ArrowDown: at ?? n - 1,
      Escape: null,
    }[name];
    if (to === undefined) return undefined;
    this.near = {k: near && near.k, step: {ArrowUp: 1, ArrowDown: -1}[name] || 0};
    return to == null ? null : clamp(to, 0, n - 1);
  }
}

// All of a run's charts, below a list in which a client can be chosen.
function drawCharts(place, run) {
  const ids = [...new Set(run.charts.flatMap(c => c.ids || []))].sort((a, b) => a - b);
  if (ids.length > 1) {
    place.append(h('div', {class: 'controls'},
      h('label', null, 'Show a client', picker(run, ids, 'none')),
      h('span', {class: 'note'}, 'Point at a chart, or use the arrow keys in it, for values.')));
  }
  place.append(h('div', {class: 'charts'}, run.charts.map(c => new LineChart(c, run).figure())));
}
