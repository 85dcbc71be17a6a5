//! `experiment`: what it prints and writes. Results of so few steps mean nothing.

use std::fs;

use serde_json::Value;

use crate::program::{INPUT, USAGE, done, refused, text};

const FEW: [&str; 6] = ["--seeds", "1", "--tuning-seeds", "1", "--hurry", "250"];

#[test]
fn a_part_is_left_out_with_settings_of_an_earlier_report() {
    let dir = tempfile::tempdir().unwrap();
    let (chosen, out) = (dir.path().join("chosen.json"), dir.path().join("out"));
    fs::write(&chosen, r#"{"chosen": {"bank, r 4, 16 atoms": {"learning_rate": 0.25, "scale": 3.0}}}"#).unwrap();
    let args = ["experiment", "instructions", "--without", "sharing", "--chosen", text(&chosen), "-o", text(&out)];
    let args = [&args[..], &FEW, &["--quiet"]].concat();
    let printed = done(&args);
    let report: Value = serde_json::from_slice(&fs::read(out.join("instructions.json")).unwrap()).unwrap();
    let rows = report["tables"][0]["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["bank, r 4, 16 atoms", "bank, r 4, 16 atoms, half of the atoms for each block"]);
    assert!(rows.iter().all(|row| row["settings"] == "lr 0.25, alpha / r 3" && row["values"].as_u64() > Some(9000)));
    assert!(rows.iter().flat_map(|row| row["samples"].as_array().unwrap()).all(|sample| sample[0].is_number()));
    assert_eq!(printed.trim_end(), fs::read_to_string(out.join("instructions.md")).unwrap().trim_end());
    assert!(refused(INPUT, &args).contains("already exists; choose another name or pass --overwrite"));
}

#[test]
fn regression_has_a_table_for_each_function() {
    let args = [&["experiment", "regression", "--json", "--quiet"][..], &FEW].concat();
    let report: Value = serde_json::from_str(&done(&args)).unwrap();
    let tables = report["tables"].as_array().unwrap();
    let titles: Vec<&str> = tables.iter().map(|table| table["title"].as_str().unwrap()).collect();
    assert_eq!(titles[..3], ["sums of sines", "Friedman 1", "Friedman 2"]);
    assert_eq!(tables.len(), 8);
}

#[test]
fn options_that_an_experiment_has_not_are_refused() {
    for (args, expected) in [
        (&["growth", "--table", "steps"][..], "--table: expected the experiment instructions, found growth"),
        (&["baking", "--without", "prior"], "--without: expected the experiment instructions, found baking"),
        (&["regression", "--chosen", "x.json"], "--chosen: expected an experiment on text, found regression"),
    ] {
        let line = refused(USAGE, &[&["experiment"], args].concat());
        assert!(line.contains(expected), "{line}");
    }
    let line =
        refused(INPUT, &["experiment", "baking", "--chosen", text(&crate::common::fixtures().join("demo/bank.toml"))]);
    assert!(line.contains("bank.toml: chosen: expected the JSON of a report of an experiment"), "{line}");
}
