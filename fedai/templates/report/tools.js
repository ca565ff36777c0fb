'use strict';
// Tools of the page's script, which has no library: elements, numbers, names, colours.
// Text comes into the page as text nodes only, so nothing in the data is ever read as HTML.

const data = JSON.parse(document.getElementById('data').textContent);

// Lists

const some = x => x != null;
const range = n => Array.from({length: n}, (_, i) => i);
const clamp = (x, lo, hi) => Math.max(lo, Math.min(hi, x));
// The first of the items for which `f` is least.
const least = (items, f) => items.reduce((a, o) => f(o) < f(a) ? o : a);

// Elements

// Gives an element attributes, listeners (where a value is a function) and children; what is null is left out.
function put(e, attrs, kids) {
  for (const [k, v] of Object.entries(attrs || {})) {
    if (typeof v == 'function') e.addEventListener(k, v);
    else if (v != null && v !== false) e.setAttribute(k, v === true ? '' : v);
  }
  e.append(...kids.flat(9).filter(some));
  return e;
}
const h = (tag, attrs, ...kids) => put(document.createElement(tag), attrs, kids);
const s = (tag, attrs, ...kids) => put(document.createElementNS('http://www.w3.org/2000/svg', tag), attrs, kids);

// Texts

// A name without the signs that turn the direction of all that follows in its line.
const plain = t => t.replace(/[\u202a-\u202e\u2066-\u2069]/g, '');
const bdi = text => h('bdi', {dir: 'auto'}, plain(text));
const words = k => k.replaceAll('_', ' ');
// A name of at most n signs, its middle left out: numbers stand at the end of names.
function short(t, n) {
  const signs = [...plain(t)], end = Math.floor(n/3);
  if (signs.length <= n) return signs.join('');
  return [...signs.slice(0, n - 1 - end), '…', ...signs.slice(-end)].join('');
}

// Numbers

// As many decimals as the largest number needs for about three digits.
function decimals(xs) {
  let m = 0;
  for (const x of xs) if (x != null && Math.abs(x) > m) m = Math.abs(x);
  if (m == 0) return 2;
  if (m >= 1000) return 0;
  if (m >= 10) return 1;
  if (m >= .1) return 2;
  return Math.min(6, 1 - Math.floor(Math.log10(m)));
}
function fixed(x, digits, sign) {
  if (x == null) return '–';
  const text = (x || 0).toLocaleString('en', {minimumFractionDigits: digits, maximumFractionDigits: digits});
  return (sign && x >= 0 ? '+' : '') + text.replace('-', '−');
}
// At most about n round numbers from lo to hi.
function ticks(lo, hi, n, whole) {
  let step = 10**Math.floor(Math.log10((hi - lo)/n || 1));
  step *= [1, 2, 5, 10].find(f => (hi - lo)/(step*f) <= n) || 10;
  if (whole) step = Math.max(1, Math.round(step));
  const out = [];
  for (let k = Math.ceil(lo/step - 1e-9); k*step <= hi + step*1e-9; k++) out.push(k*step);
  return out;
}

// Clients

const nameOf = (run, i) => run.names ? run.names[i] : 'client ' + i;
const taskOf = (run, i) => run.task && run.task[i] >= 0 ? run.tasks[run.task[i]] : '';
// The colour of a client is that of its task; there are colours for eight.
function colour(run, i) {
  if (!(run && run.task && run.tasks.length > 1)) return 'var(--c0)';
  const t = run.task[i];
  return t >= 0 && t < 8 ? `var(--c${t})` : 'var(--muted)';
}

// Legends

// A line of a colour, or where there is a class a box of it, and what it stands for.
function key(c, text, cls, dash) {
  const style = cls ? `background:${c}` : `color:${c};border-top-style:${dash || 'solid'}`;
  return h('span', null, h('span', {class: 'key ' + (cls || ''), style}), bdi(short(text, 40)));
}
function taskKeys(run) {
  if (run.tasks.length < 2) return [];
  const keys = run.tasks.slice(0, 8).map((t, j) => key(`var(--c${j})`, t));
  return run.tasks.length > 8 ? [...keys, key('var(--muted)', `${run.tasks.length - 8} other tasks`)] : keys;
}
