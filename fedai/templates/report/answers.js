// Before and after: a client's questions, with what is right and what was answered.

function answerText(t) {
  if (!t.trim()) return h('p', {class: 'text empty'}, 'nothing');
  const long = t.length > 300 || t.split('\n').length > 8;   // scrolls, so the keyboard must reach it
  return h('p', {class: 'text', dir: 'auto', tabindex: long ? 0 : null}, t);
}

function answerPart(title, text, right) {
  const mark = right ? [' ', h('b', null, '✓ right to the letter')] : null;
  return h('div', null, h('h4', null, title, mark), answerText(text));
}

function question([asked, right, own, base, average]) {
  return h('article', {class: 'qa'},
    answerPart('asked', asked),
    h('div', {class: 'texts'},
      answerPart('right', right.join('\n')),
      base ? answerPart('base model', base[0], base[1]) : null,
      average ? answerPart('mean of all adapters', average[0], average[1]) : null,
      answerPart('own adapter', own[0], own[1])));
}

function answersNote(run, i) {
  const shown = run.said[i].length, n = run.counts[i], task = taskOf(run, i);
  return h('p', {class: 'note'},
    task ? ['Task ', bdi(task), '. '] : null,
    n > shown ? `The first ${shown} of ${n} test questions; all are in generations.jsonl.` : `All ${n} test questions.`,
    run.chars < 4000 ? ` Texts longer than ${run.chars} characters are cut, so that the page stays small.` : '');
}

function drawSaid(place, run) {
  const ids = Object.keys(run.said).map(Number), box = h('div'), list = picker(run, ids);
  const now = () => run.said[run.pick] ? run.pick : ids[0];
  const step = by => () => choose(run, ids[clamp(ids.indexOf(now()) + by, 0, ids.length - 1)]);
  place.append(
    h('div', {class: 'controls'},
      h('label', null, 'Client', list),
      h('button', {type: 'button', click: step(-1)}, 'previous'),
      h('button', {type: 'button', click: step(1)}, 'next')),
    box);
  run.showSaid = () => {
    list.value = now();
    box.replaceChildren(answersNote(run, now()), ...run.said[now()].map(question));
  };
  run.showSaid();
}
