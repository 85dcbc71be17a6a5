//! Settings that would have no effect, or none that anyone wants: refused where they contradict others, and noted otherwise.

use regex_lite::Regex;

use super::{AdapterKind, Schedule, TrainConfig};
use crate::error::{Finding, Result, counted};

/// The fields of a prompt template.
const FIELDS: [&str; 2] = ["{instruction}", "{prompt}"];

impl TrainConfig {
    /// Refuses settings that others leave without effect.
    pub(super) fn check_effect(&self) -> Result<()> {
        let (t, data) = (&self.training, &self.data);
        let finding = |key: &str| Finding::new(&self.file, key);
        if t.min_learning_rate > t.learning_rate && t.learning_rate > 0.0 {
            let expected = format!("at most training.learning_rate, {}, from which a schedule falls", t.learning_rate);
            return Err(finding("training.min_learning_rate").expected(expected).found(t.min_learning_rate).mismatch());
        }
        if data.eval.is_some() && data.eval_fraction > 0.0 {
            let finding =
                finding("data.eval_fraction").expected("0 beside data.eval, which has the rows to evaluate on");
            return Err(finding.found(data.eval_fraction).mismatch());
        }
        self.check_prompt_template()
    }

    /// Refuses a prompt template that leaves out the prompt, or has a field that nothing fills. A bank that grows has its own.
    fn check_prompt_template(&self) -> Result<()> {
        let template = &self.adapter.prompt_template;
        if self.kind == AdapterKind::Grow {
            return Ok(());
        }
        let finding = || Finding::new(&self.file, "adapter.prompt_template");
        if !template.contains("{prompt}") {
            return Err(finding().expected("a text with {prompt} in it").found(format!("{template:?}")).mismatch());
        }
        let field = Regex::new(r"\{[A-Za-z_]+\}").expect("a pattern");
        match field.find_iter(template).find(|field| !FIELDS.contains(&field.as_str())) {
            Some(field) => Err(finding().expected("{instruction} and {prompt} alone").found(field.as_str()).mismatch()),
            None => Ok(()),
        }
    }

    /// What a user should know about the settings of a run of `steps` steps, a line each.
    pub(in crate::train) fn notes(&self, steps: usize) -> Vec<String> {
        let mut notes = Vec::new();
        let trains_nothing = self.adapter.lora_alpha == 0.0 && self.adapter.alpha_pattern.is_empty();
        if trains_nothing && self.kind != AdapterKind::Grow {
            notes.push("adapter.lora_alpha is 0: the adapter changes nothing, and nothing is learned".to_owned());
        }
        let t = &self.training;
        if t.decay_steps > 0 && t.schedule != Schedule::Wsd {
            notes.push("training.decay_steps changes nothing: schedule = \"wsd\" alone reads it".to_owned());
        }
        let of_banks = [("training.lambda_prior", t.lambda_prior), ("training.lambda_balance", t.lambda_balance)];
        for (key, _) in of_banks.into_iter().filter(|(_, value)| *value != 0.0 && self.kind == AdapterKind::Lora) {
            notes.push(format!("{key} changes nothing: a LoRA routes nothing"));
        }
        let rates = self.rates(steps);
        let (warmup, decay) = (rates.warmup(), rates.decay());
        let run = counted(steps, "step");
        if warmup >= steps.max(1) {
            let highest = rates.at(steps.saturating_sub(1));
            notes.push(format!(
                "the warm-up takes {warmup} steps, and the run has {run}: the learning rate only rises, up to {highest}; \
                 training.warmup_steps or training.warmup_ratio says how long it is"
            ));
        } else if self.training.schedule == Schedule::Wsd && warmup + decay > steps {
            notes.push(format!(
                "a warm-up of {warmup} and a fall of {decay} steps don't fit in {run}: the rate falls in the last {}",
                steps - warmup
            ));
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SHORT, open};

    #[test]
    fn settings_that_others_leave_without_effect_are_refused() {
        for (changes, expected) in [
            (
                &["adapter.prompt_template='x'"][..],
                "adapter.prompt_template: expected a text with {prompt} in it, found \"x\"",
            ),
            (&["adapter.prompt_template='{foo}{prompt}'"], "expected {instruction} and {prompt} alone, found {foo}"),
            (
                &["training.min_learning_rate=1", "training.learning_rate=0.01"],
                "training.min_learning_rate: expected at most training.learning_rate, 0.01, from which a schedule falls, found 1",
            ),
            (&["data.eval='e'", "data.eval_fraction=0.1"], "data.eval_fraction: expected 0 beside data.eval"),
            (&["data.roles={narrator='boss'}"], "data.roles: expected one of system, developer, user"),
        ] {
            let error = open(SHORT, changes).unwrap_err().to_string();
            assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
        }
        for changes in [
            &["adapter.prompt_template='{\"q\": {prompt}} {1} {}'"][..],
            &["training.learning_rate=0", "training.router_learning_rate=0.1", "training.min_learning_rate=0"],
            &["training.decay_steps=5", "training.schedule=wsd"],
            &["data.roles={narrator='gpt'}"],
        ] {
            open(SHORT, changes).unwrap();
        }
    }

    #[test]
    fn what_has_no_effect_in_a_run_of_some_length_is_noted() {
        let notes = |changes: &[&str], steps| open(SHORT, changes).unwrap().notes(steps).join("\n");
        assert_eq!(notes(&[], 51), "");
        let note = notes(&["training.learning_rate=1"], 50);
        assert!(note.starts_with("the warm-up takes 50 steps, and the run has 50 steps: the learning rate only rises"));
        assert!(note.contains("up to 1;"), "{note}");
        assert!(notes(&["training.learning_rate=1"], 25).contains("up to 0.5;"));
        let wsd = ["training.schedule=wsd", "training.warmup_steps=3", "training.decay_steps=2"];
        assert!(notes(&wsd, 4).contains("a warm-up of 3 and a fall of 2 steps don't fit in 4 steps"));
        assert_eq!(notes(&wsd, 5), "");
        for (changes, key) in [
            (&["training.decay_steps=5"][..], "training.decay_steps"),
            (&["kind=lora", "training.lambda_prior=0.1"], "training.lambda_prior"),
            (&["kind=lora", "training.lambda_balance=0.1"], "training.lambda_balance"),
        ] {
            assert!(notes(changes, 100).starts_with(&format!("{key} changes nothing: ")), "{changes:?}");
        }
        let nothing = ["adapter.lora_alpha=0", "training.warmup_steps=0"];
        assert!(notes(&nothing, 4).contains("adapter.lora_alpha is 0"));
        assert_eq!(notes(&["adapter.lora_alpha=0", "adapter.alpha_pattern={q_proj=4}", "kind=lora"], 100), "");
    }
}
