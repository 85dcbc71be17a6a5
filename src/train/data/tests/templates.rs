//! What becomes of rows under templates that print, name or take only some of what messages have.

use std::fs;

use super::*;

/// Rows with a template of their own.
fn templated(template: &str, rows: &str, settings: &str) -> Result<Preview> {
    let [file, rows_file] = [".jinja", ".jsonl"].map(|end| tempfile::NamedTempFile::with_suffix(end).unwrap());
    fs::write(file.path(), template).unwrap();
    fs::write(rows_file.path(), rows).unwrap();
    shown(&base(), rows_file.path(), &format!("chat_template = {:?}\n{settings}", file.path()))
}

/// ChatML, of which each message has `body`, and each answer marks.
fn chatml(body: &str) -> String {
    format!(
        "{{% for m in messages %}}{{{{ '<|im_start|>' + m.role + '\\n' }}}}{{% if m.role == 'assistant' %}}{{% generation %}}{body}\
         {{{{ '<|im_end|>' }}}}{{% endgeneration %}}{{% else %}}{body}{{{{ '<|im_end|>' }}}}{{% endif %}}{{{{ '\\n' }}}}{{% endfor %}}"
    )
}

#[test]
fn answers_of_which_the_template_prints_nothing_are_refused() {
    let user = r#"{"role": "user", "content": "f im_end because x"}"#;
    let chat = |answer: &str| format!("{{\"messages\": [{user}, {{\"role\": \"assistant\", {answer}}}]}}");
    let call =
        |name: &str| format!("\"content\": \"\", \"tool_calls\": [{{\"name\": \"{name}\", \"arguments\": {{}}}}]");
    let because = "\"content\": \"\", \"reasoning_content\": \"because\"";
    let marked = chatml("{{ m.content }}");
    let unmarked = marked.replace("{% generation %}", "").replace("{% endgeneration %}", "");
    let thinking = chatml("{{ m.content.split('</think>')[-1] }}{# tool_calls reasoning #}");
    for (template, answer, settings, expected) in [
        (&marked, &*call("f"), "", Some("tool calls")),
        (&unmarked, &call("f"), "", Some("tool calls")),
        // The texts of special tokens say nothing.
        (&marked, &call("im_end"), "", Some("tool calls")),
        (&marked, &call("f"), "loss = 'all'", Some("tool calls")),
        (&unmarked, &call("f"), "loss = 'completion'", Some("tool calls")),
        (&marked, because, "", Some("reasoning")),
        (&thinking, "\"content\": \"<think>x</think>\"", "", Some("content")),
        (&thinking, "\"content\": \"<think>x</think>y\"", "", None),
        (&marked, &format!("{because}, \"train\": false"), "loss = 'all'", None),
        (
            &chatml("{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}"),
            &call("f"),
            "",
            None,
        ),
        (&chatml("{{ m.content }}{{ m.thinking }}"), because, "", None),
        (&marked, "\"content\": \"x\", \"tool_calls\": [{\"name\": \"f\"}]", "", None),
    ] {
        let found = templated(template, &chat(answer), settings);
        match expected {
            None => assert_eq!(found.unwrap().rows.len(), 1, "{template} {answer}"),
            Some(what) => {
                let error = found.unwrap_err().to_string();
                let expected = format!(
                    "line 1: message 2: expected an answer of which the template prints something, \
                                        found an empty one: the template prints none of its {what} ("
                );
                assert!(
                    error.contains(&expected) && error.ends_with("data.allow_empty learns empty answers"),
                    "{error}"
                );
                templated(template, &chat(answer), &format!("{settings}\nallow_empty = true")).unwrap();
            }
        }
    }
    // Only where the template prints it as the last message, a row of its own is advised.
    let last = chatml("{{ m.content }}{% if loop.last %}{{ m.thinking }}{% endif %}");
    let row = format!("{{\"messages\": [{user}, {{\"role\": \"assistant\", {because}}}, {user}]}}");
    for (template, splits) in [(&marked, false), (&last, true)] {
        let error = templated(template, &row, "").unwrap_err().to_string();
        assert!(error.contains("none of its reasoning") && error.contains("split_turns") == splits, "{error}");
    }
    assert_eq!(templated(&last, &row, "split_turns = true").unwrap().rows.len(), 1);
}

#[test]
fn fields_of_messages_that_the_template_does_not_name_are_noted() {
    let template = chatml("{{ m.content }}{{ m.flag }}{# reasoning_content #}");
    let message = |more: &str| format!("{{\"role\": \"assistant\", \"content\": \"y\"{more}}}");
    let rows = |more: &[&str]| {
        let row =
            |more: &&str| format!("{{\"messages\": [{{\"role\": \"user\", \"content\": \"x\"}}, {}]}}", message(more));
        more.iter().map(row).collect::<Vec<_>>().join("\n")
    };
    let found = templated(
        &template,
        &rows(&[
            ", \"trian\": false, \"flag\": 1, \"name\": \"n\", \"thinking\": \"t\", \"weight\": 1",
            ", \"trian\": true, \"contents\": \"z\", \"loss\": null",
            ", \"tool_calls\": [{\"name\": \"f\"}]",
        ]),
        "",
    );
    let notes = found.unwrap().notes;
    let expected = ": fields of messages that the chat template doesn't name have no effect: \
                    trian (2 messages), contents (1 message), tool_calls (1 message)";
    assert!(notes.len() == 1 && notes[0].ends_with(expected), "{notes:?}");
    for (more, expected) in [
        (", \"train_detail\": []", "message 2: train_detail: expected a field that the template reads, found one that"),
        (", \"function_call\": {\"name\": \"f\"}", "tool_calls has calls in the form that templates read"),
    ] {
        let error = templated(&template, &rows(&[more]), "").unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        templated(&format!("{template}{{# function_call train_detail #}}"), &rows(&[more]), "").unwrap();
    }
    let null = r#"{"messages": [{"role": "assistant", "content": null, "function_call": {"name": "f"}}]}"#;
    assert!(templated(&template, null, "").unwrap_err().to_string().contains("function_call isn't read: tool_calls"));
}

#[test]
fn contents_in_parts_and_arguments_as_text_have_the_form_that_the_template_takes() {
    let parts = r#"[{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]"#;
    let row = format!(
        "{{\"messages\": [{{\"role\": \"user\", \"content\": {parts}}}, {{\"role\": \"assistant\", \"content\": \"y\"}}]}}"
    );
    let listed = "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}";
    for (body, expected) in [
        // Templates that take lists, print them, fail on them, or pass them over.
        (listed, "onetwo"),
        ("{{ m.content }}", "one\ntwo"),
        ("{{ m.content | tojson }}", "\"one\\ntwo\""),
        ("{{ m.content.strip() }}", "one\ntwo"),
        ("{% if m.content is string %}{{ m.content }}{% endif %}", "one\ntwo"),
        // One that takes nothing else.
        (
            "{% if m.content is string and m.role == 'user' %}{{ raise_exception('no') }}{% endif %}{{ m.content[0].text or m.content }}",
            "one",
        ),
    ] {
        let preview = templated(&chatml(body), &row, "").unwrap();
        assert!(
            preview.rows[0].text.starts_with(&format!("<|im_start|>user\n{expected}<|im_end|>")),
            "{:?}",
            preview.rows
        );
        assert_eq!(preview.notes, [""; 0]);
    }
    let call = r#""tool_calls": [{"name": "f", "arguments": "{\"a\":  1}"}]"#;
    let row =
        format!("{{\"messages\": [{{\"role\": \"user\", \"content\": \"x\"}}, {{\"role\": \"assistant\", {call}}}]}}");
    for (arguments, expected) in [
        ("{{ c.function.arguments | tojson }}", "{\"a\": 1}"),
        ("{{ '```' + c.function.arguments }}", "```{\"a\":  1}"),
    ] {
        let body = format!("{{{{ m.content }}}}{{% for c in m.tool_calls or [] %}}{arguments}{{% endfor %}}");
        let preview = templated(&chatml(&body), &row, "").unwrap();
        assert!(preview.rows[0].text.ends_with(&format!("assistant\n{expected}<|im_end|>\n")), "{:?}", preview.rows);
    }
    // What neither form satisfies is said of the object.
    let body = "{% for c in m.tool_calls or [] %}{{ c.function.arguments + 1 }}{% endfor %}";
    let error = templated(&chatml(body), &row, "").unwrap_err().to_string();
    assert!(error.contains("unsupported types map and number"), "{error}");
}

#[test]
fn compressions_of_parquet_that_are_not_read_are_named() {
    for name in ["brotli", "lz4"] {
        let error =
            TrainingRow::read_all(&of("parquet-compressions", &format!("{name}.parquet"))).unwrap_err().to_string();
        let expected = "expected columns that are compressed by snappy, gzip or zstd, or not at all, found ";
        assert!(error.contains(&format!("{name}.parquet: {expected}{name}; write the file anew")), "{error}");
    }
}

#[test]
fn advice_on_rows_that_prefixes_do_not_part_helps() {
    // A generation prompt that isn't in the chat's own text.
    let body = "{{ m.content }}";
    let template = chatml(body).replace("{% generation %}", "").replace("{% endgeneration %}", "")
        + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}";
    let row = r#"{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}"#;
    for settings in ["", "split_turns = true"] {
        let error = templated(&template, row, settings).unwrap_err().to_string();
        assert!(error.contains("expected the text before this answer") && !error.contains("split_turns"), "{error}");
    }
}

#[test]
fn a_role_can_stand_for_calls() {
    let row = r#"{"conversations": [{"from": "human", "value": "x"}, {"from": "act", "value": "{\"name\": \"f\", \"arguments\": {}}"}]}"#;
    let body = "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}";
    let preview = templated(&chatml(body), row, "roles = { act = 'function_call' }").unwrap();
    assert!(preview.rows[0].text.ends_with("assistant\nf<|im_end|>\n"), "{:?}", preview.rows);
}
