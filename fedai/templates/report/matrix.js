// A matrix in one colour with more or less of it, so that it stands on a light ground and on a dark one: a graph of many clients, and
// the cross-evaluation. The arrow keys go from cell to cell.

const INK = [47, 127, 214];
const ABOVE = 14;              // room above the matrix

class Matrix extends Plot {
  // `mats` are matrices of the same clients, of which one is shown. `look` has the label, the unit, and
  // low: is less better? best: is the best of each column marked? say(row, column, value): what is said at a cell.
  constructor(mats, look) {
    super(look.label + '. Arrow keys go from cell to cell.', 'plot wide');
    Object.assign(this, {mats, look});
    this.levels = mats.map(m => new Uint16Array(Uint8Array.from(atob(m.q), c => c.charCodeAt(0)).buffer));
    this.now = mats.length - 1;
    this.n = mats[0].n;
    this.digits = decimals(mats.flatMap(m => [m.lo, m.hi]));
    this.lo = Math.min(...mats.map(m => m.lo));
    this.hi = Math.max(...mats.map(m => m.hi));
  }

  mat() { return this.mats[this.now]; }

  showStep(k) {
    this.now = k;
    this.go(null);
  }

  figure() {
    const {grouped} = this.mat();
    const note = grouped ? h('p', {class: 'note'}, `Each row and column is the mean of up to ${grouped} clients.`) : null;
    return h('figure', null, this.plot, h('div', null, this.scale()), note);
  }

  // What the colours mean.
  scale() {
    const {look, lo, hi, digits} = this, ink = INK.join(' ');
    return h('span', {class: 'scale'},
      fixed(look.low ? hi : lo, digits),
      h('i', {style: `background:linear-gradient(to right, rgb(${ink} / .03), rgb(${ink}))`}),
      fixed(look.low ? lo : hi, digits),
      look.unit ? h('span', null, look.unit) : '');
  }

  value(i, j) {
    const m = this.mat();
    return m.lo + (m.hi - m.lo)*this.levels[this.now][i*this.n + j]/65535;
  }

  // How much colour a value has, 0 to 1.
  strength(v) {
    const share = this.hi > this.lo ? (v - this.lo)/(this.hi - this.lo) : 0;
    return this.look.low ? 1 - share : share;
  }

  draw() {
    this.measure();
    const {W, n} = this, longest = Math.max(...this.mat().names.map(t => Math.min(t.length, 24)));
    this.left = Math.min(.34*W, 12 + 6.3*longest);
    this.side = Math.min(W - this.left - 8, 560);
    this.cell = this.side/n;
    this.show(s('svg', {viewBox: `0 0 ${W} ${this.side + ABOVE + 22}`, 'aria-hidden': true},
      this.cells(), this.rowNames(), this.columnNumbers(), this.rings(), this.frame()));
  }

  // The cells as an image with a pixel for each.
  cells() {
    const {n, left, side} = this, canvas = h('canvas', {width: n, height: n});
    const ctx = canvas.getContext('2d'), img = ctx.createImageData(n, n);
    for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) {
      const alpha = Math.round(255*(.03 + .97*this.strength(this.value(i, j))));
      img.data.set([...INK, alpha], 4*(i*n + j));
    }
    ctx.putImageData(img, 0, 0);
    const box = {x: left, y: ABOVE, width: side, height: side};
    return [
      s('image', {...box, href: canvas.toDataURL(), preserveAspectRatio: 'none', style: 'image-rendering:pixelated'}),
      s('rect', {class: 'axis', ...box}),
    ];
  }

  // As many names, and numbers of columns, as there is room for.
  rowNames() {
    const {n, left, cell} = this, every = Math.ceil(13/cell), signs = Math.floor((left - 10)/6.5);
    const text = i => s('text', {x: left - 6, y: ABOVE + cell*(i + .5) + 4, 'text-anchor': 'end'}, short(this.mat().names[i], signs));
    return range(n).filter(i => i % every == 0).map(text);
  }
  columnNumbers() {
    const {n, left, cell, side} = this, {ids} = this.mat();
    const every = Math.ceil((8 + 6.5*String(Math.max(...ids)).length)/cell);
    const text = j => s('text', {x: left + cell*(j + .5), y: ABOVE + side + 15, 'text-anchor': 'middle'}, ids[j]);
    return range(n).filter(j => j % every == 0).map(text);
  }

  // A ring, on a ground of its own, around the best of each column.
  rings() {
    const {n, left, cell, look} = this;
    if (!look.best || !(this.hi > this.lo)) return [];
    const ring = (i, j, stroke, width) => s('circle', {
      cx: left + cell*(j + .5),
      cy: ABOVE + cell*(i + .5),
      r: clamp(cell/3, 2, 7),
      style: `fill:none;stroke:${stroke};stroke-width:${width}`,
    });
    return range(n).map(j => {
      const i = least(range(n), i => look.low ? this.value(i, j) : -this.value(i, j));
      return [ring(i, j, 'var(--bg)', 2 + Math.min(3, cell/8)), ring(i, j, 'var(--c1)', 2)];
    });
  }

  // Around the cell that is spoken of.
  frame() {
    if (!this.at) return null;
    const [i, j] = this.at, {left, cell} = this;
    const style = 'fill:none;stroke:var(--fg);stroke-width:1.5';
    return s('rect', {x: left + cell*j, y: ABOVE + cell*i, width: cell, height: cell, style});
  }

  say() {
    this.draw();
    if (!this.at) {
      this.tip.replaceChildren();
      return;
    }
    const [i, j] = this.at, {names} = this.mat(), {left, side, n, digits} = this;
    this.tipAt(left + side/n*(j + .5), ABOVE + side/n*i, ...this.look.say(names[i], names[j], fixed(this.value(i, j), digits)));
  }

  find(px, py) {
    const {n, left, side} = this, i = Math.floor((py - ABOVE)/side*n), j = Math.floor((px - left)/side*n);
    const at = i >= 0 && j >= 0 && i < n && j < n ? [i, j] : null;
    if (String(at) !== String(this.at)) this.go(at);
  }

  step(name) {
    const by = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Escape: null}[name];
    if (!by) return by;
    return this.at ? this.at.map((v, k) => clamp(v + by[k], 0, this.n - 1)) : [0, 0];
  }
}
