// The scorecard, client by client: one metric at a time, sorted by a click on a header, and filtered by name, number or task.
// A hundred rows are in the page until more are asked for, so that thousands of clients cost nothing.

const collate = new Intl.Collator('en', {numeric: true});

// A label with a list of choices.
function choice(label, options, change) {
  const list = h('select', {change}, options.map(o => h('option', {value: o}, words(o))));
  return [h('label', null, label, list), list];
}

class ClientTable {
  constructor(run) {
    const t = run.table;
    this.run = run;
    this.t = t;
    this.parts = Object.keys(t.parts);
    this.rivals = this.parts.filter(p => p != 'own');
    this.sort = null;    // the header of the column by which rows are sorted
    this.down = false;
    this.limit = 100;
    [this.metricBox, this.metric] = choice('Metric', t.metrics, () => this.by(null));
    [this.rivalBox, this.rival] = choice('Gain over', this.rivals, () => this.render());
    const placeholder = 'name, number or task', input = () => this.most(100);
    this.filter = h('input', {type: 'search', placeholder, 'aria-label': 'filter clients', input});
    this.count = h('span', {class: 'note', role: 'status'});
    this.table = h('table');
    this.more = h('button', {class: 'more', click: () => this.most(10*this.limit)});
  }

  place(e) {
    e.append(
      h('div', {class: 'controls'},
        this.t.metrics.length > 1 ? this.metricBox : null,
        this.rivals.length ? this.rivalBox : null,
        h('label', null, 'Filter', this.filter),
        this.count),
      h('div', {class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Clients'}, this.table),
      this.more);
    this.render();
  }

  by(head) {
    this.sort = head;
    this.render();
  }
  most(n) {
    this.limit = n;
    this.render();
  }

  name(r) { return nameOf(this.run, this.t.ids[r]); }
  task(r) { return taskOf(this.run, this.t.ids[r]); }

  // The columns for the metric that is chosen. One has `text(row)` or a number `get(row)` of `digits` decimals.
  columns() {
    const {t, run} = this, metric = this.metric.value, there = this.parts.filter(p => t.parts[p][metric]);
    const digits = decimals(there.flatMap(p => t.parts[p][metric]));
    const out = [{head: 'client', text: r => this.name(r), client: true}];
    if (run.task) out.push({head: 'task', text: r => this.task(r)});
    if (t.train.some(some)) out.push({head: 'examples', get: r => t.train[r], digits: 0});
    if (t.n.some(some)) out.push({head: 'questions', get: r => t.n[r], digits: 0});
    for (const p of there) out.push({head: p, get: r => t.parts[p][metric][r], digits});
    const gain = this.gainColumn(metric, digits);
    return gain ? [...out, gain] : out;
  }

  // How much better off clients are than with a rival: positive is better, also where less is better; `gain` is the largest.
  gainColumn(metric, digits) {
    const {t} = this, own = t.parts.own[metric], other = this.rivals.length && t.parts[this.rival.value][metric];
    if (!other) return null;
    const sign = t.low.includes(metric) ? -1 : 1;
    const get = r => own[r] == null || other[r] == null ? null : sign*(own[r] - other[r]);
    const largest = range(t.ids.length).reduce((m, r) => Math.max(m, Math.abs(get(r) ?? 0)), 0);
    return {head: 'gain', get, digits, gain: largest || 1};
  }

  wanted(r, want) {
    if (!want || String(this.t.ids[r]) === want) return true;
    return [this.name(r), this.task(r)].some(o => o.toLowerCase().includes(want));
  }

  // Rows by a column; those without a value stand last, whichever way.
  sorted(rows, c) {
    const f = this.down ? -1 : 1;
    if (c.text) return rows.sort((a, b) => f*collate.compare(c.text(a), c.text(b)));
    return rows.sort((a, b) => {
      const x = c.get(a), y = c.get(b);
      if (x == null || y == null) return (x == null) - (y == null);
      return f*(x - y);
    });
  }

  render() {
    const cols = this.columns(), n = this.t.ids.length, want = this.filter.value.trim().toLowerCase(), {limit} = this;
    let rows = range(n).filter(r => this.wanted(r, want));
    const by = cols.find(o => o.head === this.sort);
    if (by) rows = this.sorted(rows, by);
    this.count.textContent = want ? `${fixed(rows.length, 0)} of ${fixed(n, 0)} clients` : `${fixed(n, 0)} clients`;
    const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.head : null;
    this.table.replaceChildren(
      h('thead', null, h('tr', null, cols.map(c => this.header(c)))),
      h('tbody', null, rows.slice(0, limit).map(r => h('tr', null, cols.map(c => this.cell(c, r))))));
    this.more.hidden = rows.length <= limit;
    this.more.textContent = `Show ${fixed(Math.min(rows.length, 10*limit) - limit, 0)} more`;
    if (focused) this.focus(focused);
  }

  // A header that was pressed goes on having the focus.
  focus(head) {
    const button = [...this.table.querySelectorAll('th button')].find(b => b.dataset.head === head);
    if (button) button.focus();
  }

  header(c) {
    const here = c.head === this.sort, order = here ? (this.down ? 'descending' : 'ascending') : null;
    const press = () => {   // numbers begin with the largest
      this.down = this.sort === c.head ? !this.down : !c.text;
      this.by(c.head);
    };
    const text = c.head === 'gain' ? `gain over ${this.rival.value}` : c.head;
    const button = h('button', {type: 'button', 'data-head': c.head, click: press}, text);
    return h('th', {scope: 'col', class: c.text ? '' : 'n', 'aria-sort': order}, button);
  }

  cell(c, r) {
    if (c.text) return h('td', null, c.client && this.run.linked.has(this.t.ids[r]) ? this.link(c, r) : bdi(c.text(r)));
    const v = c.get(r);
    if (!c.gain) return h('td', {class: 'n'}, fixed(v, c.digits));
    const look = {class: 'n gain' + (v < 0 ? ' down' : ''), style: `--a:${(Math.abs(v ?? 0)/c.gain).toFixed(3)}`};
    return h('td', look, fixed(v, c.digits, true));
  }

  // A client's name leads to its answers, or where it has none to its lines.
  link(c, r) {
    const {run} = this, id = this.t.ids[r];
    const click = () => {
      choose(run, id);
      document.getElementById(`run${run.n}-${run.said[id] ? 'answers' : 'curves'}`).scrollIntoView();
    };
    return h('button', {type: 'button', title: 'show this client', click}, bdi(c.text(r)));
  }
}

function drawTable(place, run) { new ClientTable(run).place(place); }
