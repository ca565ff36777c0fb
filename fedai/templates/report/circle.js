// Who learns from whom: clients on a circle, in the order that puts those together that belong together, which shows pairs, groups,
// rings and a complete graph for what they are. The arrow keys go from client to client.

const NAMED = 520;     // names stand in a picture of at least this width
const RADIAL = 16;     // of more clients the names stand along the radius
const SIGNS = 22;      // of a name

class Circle extends Plot {
  constructor(steps, order, run) {
    super(`Graph of ${order.length} clients. Arrow keys go from client to client.`, 'plot wide');
    Object.assign(this, {steps, order, run});
    this.top = Math.max(...steps.flatMap(g => g.edges.map(e => e[2])), 1e-12);   // the largest weight
    this.digits = decimals([this.top]);
    this.now = steps.length - 1;                                                  // the graph that is shown
    this.places = {};                                                             // client -> x, y and angle
  }

  figure() { return h('figure', null, this.plot, h('div', {class: 'legend'}, taskKeys(this.run))); }

  showStep(k) {
    this.now = k;
    this.go(null);
  }

  edges() { return this.steps[this.now].edges; }
  name(i, most) { return short(nameOf(this.run, i), most); }

  // Sizes that follow from the width: height, the circle's radius, a client's radius, and where names stand.
  layout() {
    this.measure();
    const {W, run, order} = this, K = order.length;
    this.named = run.names && W >= NAMED;
    this.radial = K > RADIAL;
    const longest = this.named ? Math.max(...order.map(i => Math.min(SIGNS, nameOf(run, i).length))) : 0;
    const margin = this.named ? 26 + 6.4*longest : 14;
    this.H = Math.min(W, this.named && this.radial ? 640 : 480, 140 + 40*K);
    const above = !this.named ? 14 : this.radial ? margin : 34;
    this.radius = Math.min(W/2 - margin, this.H/2 - above);
    this.r = clamp(Math.PI*this.radius/K - 1, 3, 11);
    order.forEach((i, k) => {
      const angle = 2*Math.PI*k/K - Math.PI/2;
      this.places[i] = [W/2 + this.radius*Math.cos(angle), this.H/2 + this.radius*Math.sin(angle), angle];
    });
  }

  draw() {
    this.layout();
    const me = this.at == null ? null : this.order[this.at];
    const touching = this.edges().filter(([i, j]) => i == me || j == me);
    const near = me == null ? null : new Set([me, ...touching.flatMap(([i, j]) => [i, j])]);
    this.show(s('svg', {viewBox: `0 0 ${this.W} ${this.H}`, 'aria-hidden': true},
      this.edges().map(e => this.edge(e, me)),
      this.order.map(i => [this.dot(i, near), this.number(i), this.nameText(i)])));
  }

  edge([i, j, w], me) {
    const [ax, ay] = this.places[i], [bx, by] = this.places[j], mine = i == me || j == me, share = w/this.top;
    const stroke = mine ? 'var(--fg)' : 'var(--muted)', opacity = me == null || mine ? .2 + .7*share : .06;
    return s('path', {
      d: `M${ax.toFixed(1)} ${ay.toFixed(1)}L${bx.toFixed(1)} ${by.toFixed(1)}`,
      style: `stroke:${stroke};stroke-width:${(.6 + 3*share).toFixed(2)};opacity:${opacity.toFixed(2)}`,
    });
  }

  dot(i, near) {
    const [cx, cy] = this.places[i], opacity = near && !near.has(i) ? .3 : 1;
    return s('circle', {cx, cy, r: this.r, style: `fill:${colour(this.run, i)};stroke:var(--bg);stroke-width:1.5;opacity:${opacity}`});
  }

  number(i) {
    if (this.r < 8) return null;
    const [x, y] = this.places[i];
    return s('text', {x, y: y + 3.5, 'text-anchor': 'middle', style: 'fill:var(--bg);font-weight:600;font-size:10px'}, i);
  }

  // A name beside its client, or above or below it where there is no room beside; along the radius where there are many.
  nameText(i) {
    if (!this.named) return null;
    const [x, y, angle] = this.places[i], {r} = this;
    const left = Math.cos(angle) < -.01, middle = Math.abs(Math.cos(angle)) < .2, side = left ? 'end' : 'start';
    if (this.radial) {
      const at = [x + (r + 4)*Math.cos(angle), y + (r + 4)*Math.sin(angle)].map(v => v.toFixed(1)).join(' ');
      const turn = (180*angle/Math.PI + (left ? 180 : 0)).toFixed(1);
      return s('text', {transform: `translate(${at}) rotate(${turn})`, y: 4, 'text-anchor': side}, this.name(i, SIGNS));
    }
    if (middle) return s('text', {x, y: y + (Math.sin(angle) < 0 ? -r - 5 : r + 14), 'text-anchor': 'middle'}, this.name(i, 40));
    return s('text', {x: x + (left ? -1 : 1)*(r + 5), y: y + 4, 'text-anchor': side}, this.name(i, SIGNS));
  }

  // What is said: a client, and whom it learns from, the largest weights first.
  say() {
    this.draw();
    if (this.at == null) {
      this.tip.replaceChildren();
      return;
    }
    const i = this.order[this.at], touching = this.edges().filter(e => e[0] == i || e[1] == i);
    const near = touching.map(([a, b, w]) => [a == i ? b : a, w]).sort((a, b) => b[1] - a[1]);
    const [x, y] = this.places[i];
    this.tipAt(x, y,
      h('b', null, bdi(this.name(i, 40))),
      h('div', null, near.length ? 'learns from' : 'has no neighbours'),
      ...near.slice(0, 8).map(([j, w]) => h('div', null, bdi(this.name(j, 40)), ' ', h('b', null, fixed(w, this.digits)))),
      near.length > 8 ? h('div', null, `and ${near.length - 8} more`) : '');
  }

  find(px, py) {
    const away = k => Math.hypot(this.places[this.order[k]][0] - px, this.places[this.order[k]][1] - py);
    const k = least(range(this.order.length), away), at = away(k) < 30 ? k : null;
    if (at !== this.at) this.go(at);
  }

  step(name) {
    const {at} = this, K = this.order.length, back = (at ?? 0) - 1, on = (at ?? -1) + 1;
    const to = {ArrowLeft: back, ArrowUp: back, ArrowRight: on, ArrowDown: on, Escape: null}[name];
    return to == null ? to : (to + K) % K;
  }
}
