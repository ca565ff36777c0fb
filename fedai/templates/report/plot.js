// What all pictures share: the window's width decides theirs, and what the pointer or the arrow keys are at is said beside it,
// and to screen readers.

// An element of the page -> what draws it anew, where its width or the chosen client has changed.
const drawers = new Map();
const redraw = () => drawers.forEach((draw, e) => e.isConnected && e.clientWidth && draw());

// A picture has `draw()`, and says where a key leads to (`step`) and what lies at a place (`find`); `at` is null, or what is spoken of.
class Plot {
  constructor(label, cls = 'plot') {
    this.at = null;
    this.tip = h('div', {class: 'tip', role: 'status'});
    this.plot = h('div', {class: cls, tabindex: 0, role: 'group', 'aria-label': label});
    for (const o of ['pointermove', 'pointerdown']) this.plot.addEventListener(o, e => this.pointed(e));
    for (const o of ['pointerleave', 'blur']) this.plot.addEventListener(o, () => this.go(null));
    this.plot.addEventListener('keydown', e => this.pressed(e));
    drawers.set(this.plot, () => this.draw());
  }

  // The width in which it is drawn, in the picture's units.
  measure() { this.W = Math.max(220, this.plot.clientWidth); }

  show(svg) { this.plot.replaceChildren(svg, this.tip); }

  go(at) {
    this.at = at;
    this.say();
  }

  pointed(e) {
    const b = this.plot.getBoundingClientRect(), scale = this.W/b.width;
    this.find((e.clientX - b.left)*scale, (e.clientY - b.top)*scale);
  }

  pressed(e) {
    const to = this.step(e.key);
    if (to === undefined) return;   // not a key of ours
    e.preventDefault();
    this.go(to);
  }

  // Says something at a place of the picture, on the side where there is room.
  tipAt(x, y, ...kids) {
    const {W, tip} = this, scale = this.plot.clientWidth/W, right = x > W/2;
    tip.replaceChildren(...kids);
    tip.style.top = Math.max(0, y*scale - 12) + 'px';
    tip.style.left = right ? 'auto' : (x*scale + 12) + 'px';
    tip.style.right = right ? ((W - x)*scale + 12) + 'px' : 'auto';
  }
}
