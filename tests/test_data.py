"Prompts and masks with real tokenizers."
import pytest, string
from hypothesis import given, settings, strategies as st
from fedai.config import ConfigError, FedConfig
from fedai.data.prompts import DataError, Prompter, by_length, pad_batch, train_batch
from fedai.models import get_tokenizer

TINY = get_tokenizer(FedConfig(model='tiny'))

def texts(most): return st.text(string.printable, min_size=1, max_size=most).filter(str.strip)

@settings(max_examples=100, deadline=None)
@given(texts(80), texts(30), st.integers(8, 120))
def test_an_answer_is_whole_or_refused(instruction, output, max_length):
    "Whatever the lengths: the answer and its end are there in full, or the example is refused; nothing is longer than allowed."
    whole = TINY(output, add_special_tokens=False).input_ids
    try: e = Prompter(TINY, max_length=max_length).encode(dict(instruction=instruction, output=output))
    except DataError as err:
        assert 'max_length' in str(err)
        assert len(whole) + 1 + 3 >= max_length   # 3: the template's marks; then there is no room for a question
        return
    assert len(e) <= max_length
    if TINY.eos_token_id not in whole: assert e.answer == whole + [TINY.eos_token_id]
    b = train_batch([e, e], TINY.pad_token_id)
    learned = b['input_ids'][0][b['labels'][0] != -100]
    assert learned.tolist() == e.answer

@pytest.mark.parametrize('text', ['✓', 'é', 'a ✓', '😀'])
@pytest.mark.parametrize('max_length', range(16, 28, 3))
def test_a_cut_inside_a_character_comes_to_an_end(text, max_length):
    "What is left of a character may take as many tokens as the whole of it."
    assert len(Prompter(TINY, max_length=max_length).encode(dict(instruction=text*30, output='b'))) <= max_length

def test_chat_template_gives_the_tokens_of_the_whole_conversation():
    msgs = [dict(role='user', content='3 + 4 ='), dict(role='assistant', content='7')]
    e = Prompter(TINY).encode(dict(instruction='3 + 4 =', output='7'))
    assert e.prompt + e.answer == TINY(TINY.apply_chat_template(msgs, tokenize=False), add_special_tokens=False).input_ids

@pytest.mark.slow
def test_smollm2_prompt_and_end():
    tok = get_tokenizer(FedConfig())
    e = Prompter(tok, system_prompt='Be brief.').encode(dict(instruction='3 + 4 =', output='7'))
    assert tok.decode(e.prompt) == ('<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n3 + 4 =<|im_end|>\n'
                                    '<|im_start|>assistant\n')
    assert tok.decode(e.answer) == '7<|im_end|>' and tok.pad_token_id != tok.eos_token_id
    assert 'helpful AI assistant' in tok.decode(Prompter(tok).encode(dict(instruction='3 + 4 =', output='7')).prompt)

def test_without_chat_template_the_instruction_template_is_used():
    tok = get_tokenizer(FedConfig(model='tiny'))
    tok.chat_template = None
    e = Prompter(tok).encode(dict(instruction='Add.', input='3 4', output='7'))
    assert tok.decode(e.prompt) == '### Instruction:\nAdd.\n\n3 4\n\n### Response:\n' and tok.decode(e.answer) == '7<|end|>'

@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(2, 50), min_size=1, max_size=9), min_size=1, max_size=6), st.booleans())
def test_padding_loses_nothing(rows, left):
    ids,mask = pad_batch(rows, 0, left)
    assert [r[m.bool()].tolist() for r,m in zip(ids, mask)] == rows
    assert mask[:,-1 if left else 0].all()

@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 100), max_size=40), st.integers(1, 7))
def test_buckets_hold_each_item_once(lengths, size):
    b = by_length(lengths, size)
    assert sorted(i for x in b for i in x) == list(range(len(lengths))) and all(len(x) <= size for x in b)

def test_an_answer_with_the_end_token_in_it_is_refused():
    says = r"client 1, train example 3: `output` contains the end-of-sequence token '<\|end\|>'"
    with pytest.raises(DataError, match=says):
        Prompter(TINY).encode(dict(instruction='x', output='a<|end|>b'), 'client 1, train example 3')

def test_a_template_that_refuses_a_system_message_is_named():
    tok = get_tokenizer(FedConfig(model='tiny'))
    tok.chat_template = ("{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
                         "{{ messages[0]['content'] }}")
    Prompter(tok)
    with pytest.raises(ConfigError, match='`system_prompt`: expected what the tokenizer'): Prompter(tok, system_prompt='Be brief.')

@pytest.mark.parametrize('template', ['chat','instruction','alpaca','definition','Q: {instruction}\nC: {input}\nA: '])
def test_many_at_once_are_as_one_by_one(template):
    exs = [dict(instruction='Add '*(k%7), input=' '.join(map(str, range(k%5*9))), output='x'*(k%3*20 + 1)) for k in range(1, 40)]
    short = Prompter(TINY, template).encode(dict(instruction='Add', input='3', output='x'))
    p = Prompter(TINY, template, max_length=len(short) + 25)
    many = p.encode_many(exs, [f'example {k}' for k in range(len(exs))])
    for k,(ex,e) in enumerate(zip(exs, many)):
        if isinstance(e, DataError):
            with pytest.raises(DataError): p.encode(ex)
        else: assert e == p.encode(ex) and len(e) <= p.max_length
    assert {isinstance(e, DataError) for e in many} == {True,False} and any(e.cut for e in many if not isinstance(e, DataError))

def test_a_conversation_is_the_chat_template_of_its_turns():
    turns = [dict(role='user', content='3 + 4?'), dict(role='assistant', content='7'), dict(role='user', content='And 1 more?')]
    ex = dict(instruction='And 1 more?', output='8', messages=turns)
    e = Prompter(TINY).encode(ex)
    whole = TINY.apply_chat_template([*turns, dict(role='assistant', content='8')], tokenize=False)
    assert e.prompt + e.answer == TINY(whole, add_special_tokens=False).input_ids
    short = Prompter(TINY, max_length=len(e) - 1).encode(ex)
    assert short.prompt == Prompter(TINY).encode(dict(instruction='And 1 more?', output='8')).prompt
    assert short.cut == len(e.prompt) - len(short.prompt)

def test_what_the_chat_template_refuses_is_a_bad_example():
    tok = get_tokenizer(FedConfig(model='tiny'))
    tok.chat_template = ("{% for m in messages %}{% if m['content'] == 'no' %}{{ raise_exception('not that') }}{% endif %}"
                         "{{ m['content'] }}{% endfor %}")
    with pytest.raises(DataError, match="here: the chat template can't take it .*not that"):
        Prompter(tok).encode(dict(instruction='no', output='x'), 'here')
