// A list of clients. The one that is chosen is the run's, everywhere on the page.

function picker(run, ids, none) {
  const option = i => h('option', {value: i, title: nameOf(run, i)}, short(nameOf(run, i), 40));
  const list = h('select', {class: 'pick', change: () => choose(run, list.value === '' ? null : +list.value)},
    none ? h('option', {value: ''}, none) : null, ids.map(option));
  run.pickers.push(list);
  return list;
}

function choose(run, i) {
  run.pick = i;
  for (const list of run.pickers) {
    if ([...list.options].some(o => o.value === String(i ?? ''))) list.value = i ?? '';
  }
  if (run.showSaid) run.showSaid();
  redraw();
}
