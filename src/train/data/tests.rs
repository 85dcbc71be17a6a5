//! Whole files of rows, on a small base: what becomes of them is compared with fixtures/train.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::*;
use crate::train::TrainConfig;

mod templates;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// The base of most cases: its tokenizer adds nothing, and its template marks no answers.
fn base() -> PathBuf {
    fixtures().join("convert/llama/model")
}

/// A file of a case.
fn of(case: &str, file: &str) -> PathBuf {
    fixtures().join("train").join(case).join(file)
}

fn expected(case: &str) -> Value {
    serde_json::from_slice(&fs::read(of(case, "expected.json")).unwrap()).unwrap()
}

/// The rows of `file` on `base`, with lines of `[data]` in `settings`.
fn shown(base: &Path, file: &Path, settings: &str) -> Result<Preview> {
    let config = tempfile::NamedTempFile::new().unwrap();
    let text = format!("base = {base:?}\noutput = 'o'\n[data]\ntrain = {file:?}\n{settings}\n");
    fs::write(config.path(), text).unwrap();
    preview(&TrainConfig::open(config.path(), &[])?, usize::MAX)
}

fn case(case: &str, settings: &str) -> Result<Preview> {
    let template = of(case, "chat_template.jinja");
    let settings = match template.is_file() {
        true => format!("chat_template = {template:?}\n{settings}"),
        false => settings.to_owned(),
    };
    shown(&base(), &of(case, "rows.jsonl"), &settings)
}

/// Lines of text, one file.
fn lines(text: &str, settings: &str) -> Result<Preview> {
    let rows = tempfile::NamedTempFile::with_suffix(".jsonl").unwrap();
    fs::write(rows.path(), text).unwrap();
    let template = of("multi-turn-mask", "chat_template.jinja");
    shown(&base(), rows.path(), &format!("chat_template = {template:?}\n{settings}"))
}

fn numbers<T: TryFrom<u64>>(list: &Value) -> Vec<T> {
    list.as_array().unwrap().iter().map(|n| T::try_from(n.as_u64().unwrap()).ok().unwrap()).collect()
}

#[track_caller]
fn assert_row(found: &PreviewRow, expected: &Value) {
    if let Some(text) = expected["text"].as_str() {
        assert_eq!(found.text, text);
    }
    assert_eq!(found.ids, numbers::<u32>(&expected["input_ids"]), "{}", found.row);
    assert_eq!(found.mask, numbers::<u8>(&expected["mask"]), "{}", found.row);
    let first = found.mask.iter().position(|marked| *marked == 1).unwrap();
    assert_eq!(found.routed, first, "{}", found.row);
}

#[test]
fn answers_between_generation_tags_carry_loss() {
    for name in ["multi-turn-mask", "default-system-prompt"] {
        let (preview, expected) = (case(name, "").unwrap(), expected(name));
        let rows = expected["rows"].as_array().unwrap();
        assert_eq!((preview.rows.len(), preview.notes.len()), (rows.len(), 0), "{name}");
        preview.rows.iter().zip(rows).for_each(|(found, expected)| assert_row(found, expected));
    }
}

#[test]
fn without_tags_answers_are_what_their_prefixes_lack() {
    let (preview, expected) = (case("no-generation-marker", "").unwrap(), expected("no-generation-marker"));
    for (found, expected) in preview.rows.iter().zip(expected["rows"].as_array().unwrap()) {
        assert_eq!(found.ids, numbers::<u32>(&expected["input_ids"]));
        assert_eq!(found.mask, numbers::<u8>(&expected["mask_derived_with_newline"]));
    }
    // The last answer alone, and a row for each.
    let last = case("no-generation-marker", "loss = 'last'").unwrap();
    assert_eq!(last.rows[0].mask.iter().sum::<u8>(), 7);
    let each = case("no-generation-marker", "split_turns = true").unwrap();
    assert_eq!(each.rows.len(), 5);
    assert_eq!(each.rows[1].ids, last.rows[0].ids);
}

#[test]
fn a_range_that_ends_at_the_first_token_ends_there() {
    let name = "span-ends-at-first-token";
    let (preview, expected) = (case(name, "").unwrap(), expected(name));
    assert_eq!(preview.rows.len(), 1);
    assert_row(&preview.rows[0], &expected["rows"][1]);
    assert_eq!(preview.notes.len(), 1);
    let note = &preview.notes[0];
    assert!(
        note.starts_with("1 row (") && note.ends_with("line 1) without a token that carries loss is left out"),
        "{note}"
    );
}

#[test]
fn the_template_decides_on_the_first_token() {
    let name = "double-bos";
    let expected = expected(name);
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::os::unix::fs::symlink(base().join(file), folder.path().join(file)).unwrap();
    }
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(of(name, "tokenizer").join(file), folder.path().join(file)).unwrap();
    }
    for (template, key) in
        [("chat_template.jinja", "with_bos_template"), ("chat_template_without_bos.jinja", "without_bos_template")]
    {
        let settings = format!("chat_template = {:?}", of(name, template));
        let preview = shown(folder.path(), &of(name, "rows.jsonl"), &settings).unwrap();
        assert_row(&preview.rows[0], &expected[key]);
    }
    let config =
        "[adapter]\nprompt_template = '{prompt}\n'".replace('\'', "\"\"\"").replace("{prompt}\n", "{prompt}\\n");
    let plain = shown(folder.path(), &of(name, "rows-plain.jsonl"), &config).unwrap();
    assert_eq!(plain.rows[0].ids, numbers::<u32>(&expected["plain_input_ids"]));
    assert_eq!(plain.rows[0].mask, numbers::<u8>(&expected["plain_mask"]));
    let rendered = shown(folder.path(), &of(name, "rows-rendered.jsonl"), "").unwrap();
    assert_eq!(rendered.rows[0].ids, numbers::<u32>(&expected["rendered_text_input_ids"]));
    assert!(rendered.rows[0].mask[1..].iter().all(|marked| *marked == 1) && rendered.rows[0].mask[0] == 0);
}

#[test]
fn the_end_token_is_learned_though_padding_is_the_same() {
    use crate::model::{Batch, Sequence};
    let name = "pad-is-eos";
    let (preview, expected) = (case(name, "").unwrap(), expected(name));
    let sequence = |row: &PreviewRow| Sequence {
        ids: row.ids.clone(),
        routed: row.routed,
        targets: row.mask.iter().map(|marked| *marked == 1).collect(),
        instruction: vec![],
    };
    let sequences: Vec<Sequence> = preview.rows.iter().map(sequence).collect();
    let (places, learned) = Batch::new(&sequences).targets();
    let labels = expected["batch"].as_array().unwrap().iter().map(|row| row["labels"].as_array().unwrap().clone());
    let labels: Vec<i64> = labels.flatten().map(|label| label.as_i64().unwrap()).collect();
    // Where a target is predicted, and what it is.
    let expected: Vec<(u32, u32)> = labels
        .iter()
        .enumerate()
        .filter(|(_, label)| **label >= 0)
        .map(|(i, label)| (i as u32 - 1, *label as u32))
        .collect();
    assert_eq!(places.into_iter().zip(learned).collect::<Vec<_>>(), expected);
}

#[test]
fn thinking_that_the_template_drops_is_learned_in_a_row_of_its_own() {
    let name = "thinking-dropped-from-history";
    let expected = expected(name);
    let one = case(name, "").unwrap();
    assert_row(&one.rows[0], &expected["one_rendering"]);
    assert!(one.notes[0].contains("of which the template leaves out a part"), "{:?}", one.notes);
    let each = case(name, "split_turns = true").unwrap();
    let rows = expected["a_row_a_turn"].as_array().unwrap();
    assert_eq!((each.rows.len(), each.notes.len()), (rows.len(), 0));
    each.rows.iter().zip(rows).for_each(|(found, expected)| assert_row(found, expected));
    // The same template without its tags: prefixes are no prefixes.
    let text = fs::read_to_string(of(name, "chat_template.jinja")).unwrap();
    let template = tempfile::NamedTempFile::new().unwrap();
    let text = text.replace("{% generation %}", "").replace("{% endgeneration %}", "");
    fs::write(template.path(), text).unwrap();
    let settings = format!("chat_template = {:?}\n", template.path());
    let error = shown(&base(), &of(name, "rows.jsonl"), &settings).unwrap_err().to_string();
    assert!(error.contains("rows.jsonl: line 1: message 2: expected the text up to this answer to begin"), "{error}");
    assert!(error.contains("data.split_turns makes a row of each answer"), "{error}");
    let each = shown(&base(), &of(name, "rows.jsonl"), &format!("{settings}split_turns = true")).unwrap();
    assert_eq!(each.rows[0].text, rows[0]["text"].as_str().unwrap());
    assert_eq!(each.rows[1].text, rows[1]["text"].as_str().unwrap());
}

#[test]
fn tool_calls_are_the_same_in_every_form() {
    let (preview, expected) = (case("tool-calls", "").unwrap(), expected("tool-calls"));
    assert_eq!(preview.rows.len(), 3);
    preview.rows.iter().for_each(|row| assert_row(row, &expected["all_rows"]));
}

#[test]
fn structs_of_parquet_have_no_foreign_fields() {
    let name = "tools-in-parquet";
    let settings = format!("chat_template = {:?}", of(name, "chat_template.jinja"));
    for file in ["rows.parquet", "rows.jsonl"] {
        let preview = shown(&base(), &of(name, file), &settings).unwrap();
        for (found, expected) in preview.rows.iter().zip(expected(name)["rows"].as_array().unwrap()) {
            assert_row(found, &expected["right"]);
        }
    }
    let error = shown(&base(), &of(name, "rows.parquet"), "format = 'text'").unwrap_err().to_string();
    assert!(error.contains("rows.parquet: rows 1, 2: row 1: text: expected a text, found none"), "{error}");
    let broken = tempfile::NamedTempFile::with_suffix(".parquet").unwrap();
    let mut bytes = fs::read(of(name, "rows.parquet")).unwrap();
    for cut in [0, 3, 100, bytes.len() - 1] {
        fs::write(broken.path(), &bytes[..cut]).unwrap();
        let error = shown(&base(), broken.path(), "").unwrap_err().to_string();
        assert!(error.contains("expected a Parquet file") && error.lines().count() == 1, "{error}");
    }
    // A change anywhere is an error or other values, never a panic.
    for at in (0..bytes.len()).step_by(97) {
        bytes[at] ^= 0x41;
        fs::write(broken.path(), &bytes).unwrap();
        _ = read::rows(broken.path(), &[]);
        bytes[at] ^= 0x41;
    }
}

#[test]
fn sharegpts_roles_are_mapped_or_refused() {
    let name = "sharegpt-roles";
    let error = case(name, "").unwrap_err().to_string();
    assert!(error.contains("rows.jsonl: line 5: message 2: role: expected one of system, developer"), "{error}");
    assert!(error.contains("found \"narrator\"; data.roles says what others are"), "{error}");
    let preview = case(name, "roles = { narrator = 'user' }").unwrap();
    assert_eq!(preview.rows.len(), 6);
    for (found, expected) in preview.rows.iter().zip(expected(name)["rows"].as_array().unwrap()) {
        if expected["line"] != 5 {
            assert_row(found, expected);
        }
    }
}

#[test]
fn texts_of_control_tokens_carry_no_loss_that_is_not_theirs() {
    let name = "control-tokens-in-content";
    let preview = case(name, "").unwrap();
    for (found, expected) in preview.rows.iter().zip(expected(name)["rows"].as_array().unwrap()) {
        assert_row(found, &expected["as_transformers"]);
    }
    assert!(
        preview.notes[0].contains("2 rows (") && preview.notes[0].contains("control tokens"),
        "{:?}",
        preview.notes
    );
}

#[test]
fn cut_rows_have_the_loss_of_what_is_left() {
    let name = "cut-inside-an-answer";
    for (length, expected) in expected(name)["cut"].as_object().unwrap() {
        let preview = case(name, &format!("truncate = 'right'\nmax_length = {length}"));
        match expected["loss_tokens"].as_u64().unwrap() {
            0 => {
                let error = preview.unwrap_err().to_string();
                assert!(error.contains("expected rows with tokens that carry loss, found none: 1 row ("), "{error}");
            }
            _ => assert_row(&preview.unwrap().rows[0], expected),
        }
    }
    let error = case(name, "max_length = 60").unwrap_err().to_string();
    assert!(error.contains("line 1: expected at most 60 tokens, by data.max_length"), "{error}");
    let left = case(name, "truncate = 'left'\nmax_length = 20").unwrap();
    let whole = case(name, "").unwrap();
    assert_eq!((&left.rows[0].ids[..], &left.rows[0].mask[..]), (&whole.rows[0].ids[41..], &whole.rows[0].mask[41..]));
    let error = case(name, "truncate = 'drop'\nmax_length = 60").unwrap_err().to_string();
    assert!(error.contains("longer than data.max_length is left out"), "{error}");
}

#[test]
fn a_completion_of_messages_begins_behind_the_header() {
    let name = "prompt-and-completion-as-messages";
    let expected = expected(name);
    let preview = case(name, "").unwrap();
    preview.rows.iter().for_each(|row| assert_row(row, &expected));
    let behind = case(name, "loss = 'completion'").unwrap();
    for row in behind.rows {
        assert_eq!(row.mask, numbers::<u8>(&expected["mask_with_the_newline"]));
        assert_eq!(row.routed as u64, expected["prompt_length"].as_u64().unwrap());
    }
}

#[test]
fn alpacas_odd_values_are_named_together() {
    let name = "alpaca-odd-values";
    let error = case(name, "").unwrap_err().to_string();
    assert!(error.contains("rows.jsonl: lines 5, 6, 7, 8: line 5: output: expected a text, found 2"), "{error}");
    assert!(error.contains("line 8: output: expected a completion"), "{error}");
    let text = fs::read_to_string(of(name, "rows.jsonl")).unwrap();
    let good = text.lines().enumerate().filter(|(i, _)| !(4..8).contains(i)).map(|(_, line)| line);
    let preview = lines(&good.collect::<Vec<_>>().join("\n"), "").unwrap();
    let expected = expected(name);
    for (found, line) in preview.rows.iter().zip(["1", "2", "3", "4", "9", "10"]) {
        match &expected["lines"][line] {
            Value::Null => assert_eq!(
                found.text,
                "<|im_start|>user\n  Keep spaces  \n\t<|im_end|>\n<|im_start|>assistant\nok \n<|im_end|>\n"
            ),
            row => assert_row(found, row),
        }
    }
    let written = case(name, "json_values = true\nallow_empty = true").unwrap();
    assert!(written.rows[4].text.contains("assistant\n2<|im_end|>"), "{}", written.rows[4].text);
    assert!(written.rows[5].text.contains("assistant\n{\"a\": [1, null], \"b\": \"ü\"}<|im_end|>"));
    assert_eq!(written.rows.len(), 10);
    // For a bank, the instruction is the field.
    let encoder = TextEncoder::open(&base()).unwrap();
    assert_eq!(preview.rows[0].instruction, encoder.encode("Reverse.", false).unwrap());
}

#[test]
fn cells_are_texts() {
    let rows = TrainingRow::read_all(&of("csv-cells-are-text", "rows.csv")).unwrap();
    let expected = expected("csv-cells-are-text");
    let found: Vec<(&str, &str)> = rows.iter().map(|row| (row.prompt.as_str(), row.completion.as_str())).collect();
    let text = |row: &'static Value, field| row[field].as_str().unwrap();
    let expected: &'static Value = Box::leak(Box::new(expected));
    let expected: Vec<(&str, &str)> =
        expected["rows"].as_array().unwrap().iter().map(|row| (text(row, "prompt"), text(row, "completion"))).collect();
    assert_eq!(found, expected);
}

#[test]
fn oddities_of_json_lines_are_read_or_refused_by_line() {
    let name = "jsonl-oddities";
    let expected = expected(name);
    let mut found = Vec::new();
    let mut refused = Vec::new();
    for row in read::rows(&of(name, "rows.jsonl"), &[]).unwrap() {
        match row.columns {
            Ok(columns) => found.push((row.place.number.to_string(), Value::Object(columns))),
            Err(_) => refused.push(row.place.number as u64),
        }
    }
    let rows: Vec<(String, Value)> =
        expected["rows"].as_object().unwrap().iter().map(|(line, row)| (line.clone(), row.clone())).collect();
    assert_eq!(found, rows);
    assert_eq!(refused, numbers::<u64>(&expected["refused"]));
    let error = TrainingRow::read_all(&of(name, "rows.jsonl")).unwrap_err().to_string();
    assert!(error.contains("rows.jsonl: lines 4, 6, 8, 9, 10: line 4: expected one JSON object, found"), "{error}");
    let rows = TrainingRow::read_all(&of(name, "rows.json")).unwrap();
    assert_eq!(rows.iter().map(|row| row.completion.as_str()).collect::<Vec<_>>(), ["b", "d"]);
}

#[test]
fn answers_that_say_nothing_are_refused() {
    let name = "empty-and-null-answers";
    let expected = expected(name);
    let error = case(name, "").unwrap_err().to_string();
    assert!(error.contains("rows.jsonl: lines 1, 2, 3, 4, 5 and 1 more: line 1: message 2: content: "), "{error}");
    let error = case(name, "allow_empty = true").unwrap_err().to_string();
    assert!(error.contains("rows.jsonl: lines 2, 3, 7: "), "{error}");
    let text = fs::read_to_string(of(name, "rows.jsonl")).unwrap();
    let good: Vec<&str> = text.lines().enumerate().filter(|(i, _)| ![1, 2, 6].contains(i)).map(|(_, l)| l).collect();
    let preview = lines(&good.join("\n"), "allow_empty = true").unwrap();
    for (found, line) in preview.rows.iter().zip(["1", "4", "5", "6"]) {
        assert_row(found, &expected["if_let_through"][line]);
    }
}

#[test]
fn bad_rows_are_named_by_line_and_field() {
    let user = r#"{"role": "user", "content": "x"}"#;
    for (text, expected) in [
        ("", "expected at least one row, found none"),
        (
            "{\"prompt\": \"x\", \"completion\": \"y\"}\n\n{\"prompt\": \"x\"}",
            "line 3: expected fields of a known form",
        ),
        ("{\"prompt\": \"x\", \"completion\": \"\"}", "line 1: completion: expected a completion, found an empty one"),
        ("{\"completion\": \"y\", \"label\": 1}", "line 1: unknown field `label`"),
        ("{\"completion\": null}", "line 1: completion: expected a text, found null"),
        ("{\"completion\": \"y\", \"output\": \"z\"}", "expected one field of this meaning, found both"),
        ("not json", "line 1: expected one JSON object, found something that is no value, at column 2"),
        ("[1]", "row 1: expected a JSON object, found 1"),
        (
            "[{\"completion\": \"y\"},\n {\"completion\": \"\\ud83d\"}]",
            "row 2: expected a JSON object, found \\u of half a surrogate pair",
        ),
        (
            "[{\"completion\": \"y\"}, {\"text\": \"y\", \"text\": \"z\"}]",
            "row 2: expected a JSON object, found the field \"text\" twice",
        ),
        (
            "[{\"completion\": \"y\"}, {\"completion\": NaN}]",
            "row 2: expected a JSON object, found something that is no value",
        ),
        (
            "[{\"completion\": \"y\"}]\n[1]",
            "expected one list of JSON objects, found more text after the end, in line 2",
        ),
        ("{\"completion\": \"\\udc00\"}", "line 1: expected one JSON object, found \\u of half a surrogate pair"),
        ("{\"messages\": []}", "line 1: expected at least one message, found none"),
        ("{\"messages\": \"x\"}", "line 1: messages: expected a list, found \"x\""),
        (&format!("{{\"messages\": [{user}]}}"), "found none: 1 row ("),
        (
            &format!("{{\"messages\": [{user}, {{\"role\": \"assistant\", \"content\": 1}}]}}"),
            "line 1: message 2: content: expected a text, found 1; data.json_values",
        ),
        (
            &format!("{{\"messages\": [{user}, {{\"role\": \"assistant\", \"content\": \"a\", \"weight\": 0.5}}]}}"),
            "line 1: message 2: weight: expected 0, 1, true or false, found 0.5",
        ),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\"}]}]}",
            "line 1: message 1: content: expected parts of text, found {\"type\":\"image\"}",
        ),
    ] {
        let error = lines(text, "").unwrap_err().to_string();
        assert!(error.contains(expected) && error.lines().count() == 1, "{text}: {error}");
    }
    for (settings, expected) in [
        ("fields = { prompt = 'q', completion = 'a' }\nignore_fields = ['id']", None),
        ("fields = { prompt = 'q', completion = 'a' }", Some("unknown field `id`")),
        ("ignore_fields = ['id']", Some("found q, a, id")),
    ] {
        let found = lines("{\"q\": \"x\", \"a\": \"y\", \"id\": 7}", settings);
        match expected {
            None => assert_eq!(found.unwrap().rows[0].text, "\nx\ny"),
            Some(expected) => assert!(found.unwrap_err().to_string().contains(expected)),
        }
    }
}

#[test]
fn csv_files_that_contradict_themselves_are_refused() {
    for (text, expected) in [
        ("prompt,completion\na,b,c\nd,e\n", "line 2: expected 2 cells, found 3"),
        ("prompt,completion\na\nb\n", "lines 2, 3: line 2: expected 2 cells, found 1; line 3"),
        ("prompt,completion\na,b\nc,\"d\n", "line 3: expected a quote that ends, found one that is open"),
        ("prompt,completion,label\na,b,c\n", "line 2: unknown field `label`"),
        ("prompt,prompt\na,b\n", "line 1: expected each column once, found \"prompt\" twice"),
        ("prompt,\na,b\n", "line 1: expected a name for each column, found an empty one"),
        ("prompt,completion\n", "expected at least one row, found none"),
        (
            "prompt,completion\r\na,b\r\n\r\nc,\"d\"e\r\n",
            "line 4: expected the end of a cell behind the quote that closes it, found \"e\"",
        ),
        ("prompt,completion\n\"a\nb\" ,c\nd\n", "lines 2, 4: line 2: expected the end of a cell"),
        (
            "prompt;completion\na;b\n",
            "line 1: expected columns that are parted by commas, found \"prompt;completion\"; save it",
        ),
        ("prompt\tcompletion\na\tb\n", "a file with tabs is called .tsv"),
    ] {
        let file = tempfile::NamedTempFile::with_suffix(".csv").unwrap();
        fs::write(file.path(), text).unwrap();
        let error = TrainingRow::read_all(file.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn rows_come_from_several_files() {
    let folder = tempfile::tempdir().unwrap();
    let row = |n: usize| format!("{{\"prompt\": \"p\", \"completion\": \"c{n}\"}}\n");
    fs::write(folder.path().join("b.jsonl"), row(2)).unwrap();
    fs::write(folder.path().join("a.jsonl"), row(1)).unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gz, row(3).as_bytes()).unwrap();
    fs::write(folder.path().join("c.jsonl.gz"), gz.finish().unwrap()).unwrap();
    let all = shown(&base(), &folder.path().join("*.json*"), "").unwrap();
    let texts: Vec<&str> = all.rows.iter().map(|row| row.text.rsplit('\n').next().unwrap()).collect();
    assert_eq!(texts, ["c1", "c2", "c3"]);
    for (path, expected) in [
        (folder.path().join("*.csv"), "expected files that match, found none"),
        (folder.path().to_owned(), "expected a file of rows, found a folder"),
        (folder.path().join("x.zip"), "expected a file of rows: .jsonl"),
        (folder.path().join("none.jsonl"), "none.jsonl: cannot open"),
    ] {
        let error = shown(&base(), &path, "").unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_bank_routes_by_the_system_turn_or_a_field() {
    let encoder = TextEncoder::open(&base()).unwrap();
    let tokens = |text: &str| encoder.encode(text, false).unwrap();
    let chat = r#""messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]"#;
    let named = tempfile::NamedTempFile::new().unwrap();
    fs::write(named.path(), "rev\tReverse it.\n").unwrap();
    let names = format!("instructions = {:?}", named.path());
    for (row, settings, expected) in [
        (format!("{{{chat}}}"), "", "Be brief."),
        (format!("{{{chat}, \"instruction\": \"Own.\"}}"), "", "Own."),
        (format!("{{{chat}, \"task\": \"Own.\"}}"), "instruction_field = 'task'", "Own."),
        (format!("{{{chat}, \"task\": \"rev\"}}"), &format!("instruction_field = 'task'\n{names}"), "Reverse it."),
        (r#"{"instruction": "rev", "prompt": "a", "completion": "b"}"#.to_owned(), &names, "Reverse it."),
        (r#"{"text": "a b c", "instruction": "Go on."}"#.to_owned(), "", "Go on."),
    ] {
        let preview = lines(&row, settings).unwrap();
        assert_eq!(preview.rows[0].instruction, tokens(expected), "{row}");
    }
    let error = lines(r#"{"instruction": "no", "prompt": "a", "completion": "b"}"#, &names).unwrap_err().to_string();
    assert!(error.contains("line 1: instruction: expected the name of an instruction in"), "{error}");
}

#[test]
fn chats_need_a_template() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::os::unix::fs::symlink(base().join(file), folder.path().join(file)).unwrap();
    }
    let error = shown(folder.path(), &of("multi-turn-mask", "rows.jsonl"), "").unwrap_err().to_string();
    assert!(error.contains("chat_template: expected a template, by which chats become text, found none"), "{error}");
    assert!(error.ends_with("data.chat_template names a file with one"), "{error}");
    // Without one, Alpaca's rows have the bank's own template.
    let rows = tempfile::NamedTempFile::new().unwrap();
    fs::write(rows.path(), "{\"instruction\": \"i\", \"input\": \"p\", \"output\": \"o\"}").unwrap();
    assert_eq!(shown(folder.path(), rows.path(), "").unwrap().rows[0].text, "i\np\no");
    fs::write(rows.path(), "{\"instruction\": \"i\", \"system\": \"s\", \"output\": \"o\"}").unwrap();
    assert!(shown(folder.path(), rows.path(), "").unwrap_err().to_string().contains("unknown field `system`"));
}
