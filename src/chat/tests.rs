use serde_json::json;

use super::*;

fn template(text: &str) -> (tempfile::TempDir, ChatTemplate) {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": text});
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let template = ChatTemplate::open(folder.path(), None).unwrap().unwrap();
    (folder, template)
}

fn render_all(text: &str, messages: &Value, tools: Option<&Value>) -> Result<Rendered> {
    let (_folder, template) = template(text);
    let chat = Chat {
        messages: messages.as_array().unwrap(),
        tools,
        documents: None,
        add_generation_prompt: false,
        options: &Map::new(),
    };
    template.render(&chat, || Finding::new("rows.jsonl", "line 3"))
}

fn rendered(text: &str, messages: Value) -> String {
    render_all(text, &messages, None).unwrap().text
}

/// The expectations are those of transformers 5.23.
#[test]
fn templates_see_what_transformers_gives_them() {
    let one = json!([{"role": "user", "content": " Hi "}]);
    for (text, expected) in [
        ("{{ bos_token }}{{ messages[0].content.strip() }}{{ eos_token }}\n", "<s>Hi</s>"),
        ("{% for m in messages %}\n  {{ m.role }}\n{% endfor %}\n", "  user\n"),
        ("{{ tools is none }} {{ documents is none }} {{ unk_token is defined }}", "True True False"),
        ("{{ messages[0].name }}|{{ 'role' in messages[0] }}|{{ messages[0].get('name', 'x') }}", "|True|x"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        ("{{ messages | tojson }}", "[{\"role\": \"user\", \"content\": \" Hi \"}]"),
        ("{{ {'a': 1} | tojson(indent=2) }}", "{\n  \"a\": 1\n}"),
        ("{{ 'a<b>c'.split('<')[-1].removesuffix('c') }}{{ 'a,b,c'.rsplit(',', 1) | join('|') }}", "b>a,b|c"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "13"),
        ("{{ messages[::-1][0].role }}{{ 'abc'[1:] }}{{ 'abc'[:-1] }}", "userbcab"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{%- macro say(x) -%}\n  <{{ x }}>\n{%- endmacro -%}\n{{ say('y') }}", "<y>"),
        ("{{ '%s-%d' | format('a', 3) }}{{ 3 // 2 }}{{ 3 / 2 }}{{ true }}{{ none }}", "a-311.5True"),
    ] {
        assert_eq!(rendered(text, one.clone()), expected, "{text}");
    }
}

#[test]
fn a_type_named_items_does_not_hide_the_method() {
    let text = "{% for k, v in messages[0].items() %}{{ k }};{% endfor %}";
    assert_eq!(rendered(text, json!([{"items": {"type": "string"}, "role": "user"}])), "items;role;");
}

#[test]
fn reasoning_has_all_of_its_names() {
    let text = "{{ messages[0].reasoning_content }}{{ messages[0].thinking }}";
    assert_eq!(rendered(text, json!([{"role": "assistant", "reasoning": "r"}])), "rr");
}

#[test]
fn generation_blocks_give_ranges_whatever_is_around_them() {
    let chat = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "bé"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]);
    for (text, expected) in [
        (
            "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}.{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
            "abé.cd.",
        ),
        (
            "{% for m in messages %}\n{% if m.role == 'assistant' %}\n  {%- generation %}\n{{ m.content }}\n.{%- endgeneration -%}\n  {% else %}\n{{ m.content }}\n{%- endif %}\n{% endfor %}",
            "abé\n.cd\n.",
        ),
        // The block sees the loop, and what was set before it.
        (
            "{% for m in messages %}{% set c = m.content %}{% if m.role == 'assistant' %}{%- generation -%}{{ c }}{% if loop.last %}!{% else %}{{ loop.index0 }}{% endif %}{%- endgeneration -%}{% else %}{{ c }}{% endif %}{% endfor %}",
            "abé1cd!",
        ),
    ] {
        let rendered = render_all(text, &chat, None).unwrap();
        assert_eq!(rendered.text, expected);
        assert_eq!(rendered.answers.len(), 2);
        let answers: Vec<&str> = rendered.answers.iter().map(|range| &rendered.text[range.clone()]).collect();
        assert!(answers[0].starts_with("bé") && answers[1].starts_with('d'), "{answers:?}");
        assert_eq!(rendered.answers[1].end, rendered.text.len());
    }
}

/// The expectations are those of transformers 5.23.
#[test]
fn generation_blocks_and_macros_assign_to_namespaces_and_keep_variables() {
    let chat = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    for (text, expected) in [
        ("{% set ns = namespace(a=0) %}{% generation %}{% set ns.a = 7 %}{% endgeneration %}{{ ns.a }}", "7"),
        (
            "{% set ns = namespace(a=0) %}{% macro f(m) %}\n  {%- set ns.a = 7 -%}\n {{ m.content }}{% endmacro %}{{ f(messages[1]) }}{{ ns.a }}",
            "b7",
        ),
        (
            "{% set ns = namespace(a=0) %}{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}{% set ns.a = 1 %}x{% endcall %}{{ ns.a }}",
            "x1",
        ),
        ("{% set q = 1 %}{% generation %}{% set q = 2 %}{% set z = 3 %}{{ q }}{% endgeneration %}{{ q }}{{ z }}", "21"),
        (" {%- generation +%}\n a {% endgeneration -%} b", "\n a b"),
        ("x\n  {% generation %}\n a\n  {% endgeneration %}\nb", "x\n a\nb"),
        ("x\n  {%+ generation %}a\n  {%+ endgeneration +%}\nb", "x\n  a\n  \nb"),
    ] {
        assert_eq!(rendered(text, chat.clone()), expected, "{text}");
    }
}

#[test]
fn what_a_template_refuses_is_said_with_the_row() {
    for (text, expected) in [
        ("{{ raise_exception('roles must alternate') }}", "found \"roles must alternate\", in line 1 of the template"),
        ("\n{{ messages[7].content.x }}", "in line 2 of the template"),
        ("{{ messages | nothing }}", "nothing"),
        ("{{ strftime_now('%Q!') }}", "strftime_now can't write"),
    ] {
        let error = render_all(text, &json!([{"role": "user", "content": ""}]), None).unwrap_err().to_string();
        assert!(error.starts_with("rows.jsonl: line 3: expected a chat that the template of "), "{error}");
        assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
    }
    let marked = json!([{"role": "user", "content": "\u{fdd0}"}]);
    assert!(render_all("x", &marked, None).unwrap_err().to_string().contains("U+FDD0"));
}

#[test]
fn a_template_that_does_not_end_is_stopped() {
    let text = "{% for i in range(90000) %}{% for j in range(90000) %}{{ i }}{% endfor %}{% endfor %}";
    let error = render_all(text, &json!([]), None).unwrap_err().to_string();
    assert!(error.contains("fuel"), "{error}");
}

#[test]
fn files_go_before_the_config_and_tools_have_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let open = |choice: Option<&Path>| ChatTemplate::open(folder.path(), choice);
    assert!(open(None).unwrap().is_none());
    let named = json!([{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]);
    std::fs::write(path("tokenizer_config.json"), json!({"chat_template": named}).to_string()).unwrap();
    let text = |template: &ChatTemplate, tools: Option<&Value>| {
        let chat = Chat { messages: &[], tools, documents: None, add_generation_prompt: false, options: &Map::new() };
        template.render(&chat, || Finding::new("", "")).unwrap().text
    };
    let template = open(None).unwrap().unwrap();
    assert_eq!((text(&template, None), text(&template, Some(&json!([])))), ("d".to_owned(), "t".to_owned()));
    assert_eq!(text(&open(Some(Path::new("tool_use"))).unwrap().unwrap(), None), "t");
    let error = open(Some(Path::new("tool-use"))).err().unwrap().to_string();
    assert!(error.contains("a template of the base: default, tool_use") && error.contains("did you mean"), "{error}");
    std::fs::write(path("chat_template.jinja"), "of\r\na file").unwrap();
    assert_eq!(text(&open(None).unwrap().unwrap(), None), "of\na file");
    std::fs::write(path("other.jinja"), "{% if %}").unwrap();
    let error = open(Some(&path("other.jinja"))).err().unwrap().to_string();
    assert!(error.contains("other.jinja: chat_template: expected a template in the language of Jinja"), "{error}");
}

/// fixtures/chat/expressions.json has templates and what transformers 5.23 (Jinja 3.1, Python 3.11) makes of them.
#[test]
fn expressions_are_those_of_jinja() {
    let pairs: Vec<(String, String)> =
        serde_json::from_str(include_str!("../../fixtures/chat/expressions.json")).unwrap();
    let chat = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "ok"}]);
    let mut others = Vec::new();
    for (template, expected) in pairs {
        match render_all(&template, &chat, None) {
            Ok(rendered) if rendered.text == expected => {}
            Ok(rendered) => others.push(format!("{template}: {:?}, not {expected:?}", rendered.text)),
            Err(error) => others.push(format!("{template}: {error}")),
        }
    }
    assert!(others.is_empty(), "{}", others.join("\n"));
}

#[test]
fn what_python_would_not_do_or_what_is_not_there_is_refused() {
    for (template, expected) in [
        ("{{ nope|int }}", "int of a value that isn't defined"),
        ("{{ nope|attr('a') }}", "isn't defined"),
        ("{{ messages[0]|attr('items') }}", "names a method"),
        ("{{ ('x' * 99)|list|pprint }}", "longer than 80"),
        ("{{ 'a'.split('') }}", "empty separator"),
        ("{{ 'a'.ljust(999999999999) }}", "padded by at most"),
        ("{{ 'a'|indent(999999999999) }}", "at most 1024"),
        ("{{ 'abc'|truncate(1) }}", "truncate takes a length"),
        ("{{ '١'|int }}", "other digits"),
        ("{{ ('9' * 60)|int }}", "int of "),
        ("{{ [1].index(2) }}", "not in list"),
        ("{{ cycler() }}", "at least one value"),
        ("{{ none|join }}", "join of None"),
    ] {
        let error = render_all(template, &json!([{"role": "user"}]), None).unwrap_err().to_string();
        assert!(error.contains(expected) && error.lines().count() == 1, "{template}: {error}");
    }
}
