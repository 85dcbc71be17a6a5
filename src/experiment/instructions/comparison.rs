//! Many instructions in one adapter: exact match against steps, rows, tasks and trained values, and what decides.

use super::lab::Lab;
use super::methods::{Bank, Method, Part};
use super::runs::{Tested, seeded, tuned, values};
use super::{BATCH, MAIN, Setting, TESTS};
use crate::error::Result;
use crate::experiment::plot::{Curve, Plot};
use crate::experiment::report::{Report, Row, Sample, Table};
use crate::experiment::tuning::Choice;
use crate::experiment::{Say, Size};

/// A table of the experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// The methods, tuned, by steps.
    Steps,
    /// Other numbers of tasks.
    Tasks,
    /// Other numbers of rows.
    Rows,
    /// Other sizes.
    Values,
    /// The bank without one of its parts.
    Parts,
}

impl Topic {
    /// All tables, by their names on the command line.
    pub const ALL: [(&str, Topic); 5] = [
        ("steps", Topic::Steps),
        ("tasks", Topic::Tasks),
        ("rows", Topic::Rows),
        ("values", Topic::Values),
        ("parts", Topic::Parts),
    ];
}

/// What of the experiment is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// The tables.
    pub topics: Vec<Topic>,
    /// The parts that the bank is tried without, in the table of parts.
    pub without: Vec<Part>,
}

impl Default for Selection {
    fn default() -> Self {
        Self { topics: Topic::ALL.map(|(_, topic)| topic).to_vec(), without: Part::ALL.map(|(_, part)| part).to_vec() }
    }
}

/// The methods that are compared. The first is the bank.
const METHODS: [Method; 5] =
    [Method::Bank(Bank::DEFAULT), Method::Lora(5), Method::LoraEverywhere(1), Method::Mixture(5), Method::OneEach];

/// Steps after which the comparison is tested.
const TESTED: [usize; 6] = [25, 50, 100, 150, 200, 250];

/// Compares methods on named tasks with the base of `lab`.
///
/// # Errors
/// Errors of the computation.
pub fn instructions(lab: &Lab, selection: &Selection, size: Size, say: Say) -> Result<Report> {
    let has = |topic| selection.topics.contains(&topic);
    let only_bank = selection.topics == [Topic::Parts];
    let mut all = Compared { lab, size, say, chosen: Vec::new() };
    for method in METHODS.into_iter().take(if only_bank { 1 } else { METHODS.len() }) {
        let choice = all.tuned(method)?;
        all.chosen.push((method, choice));
    }
    let (mut tables, mut plots) = (Vec::new(), Vec::new());
    if has(Topic::Steps) {
        let (table, plot) = all.steps()?;
        tables.push(table);
        plots.push(plot);
    }
    if has(Topic::Tasks) {
        let settings = [6, 12, 48].map(|tasks| (format!("{tasks} tasks"), Setting { tasks, ..MAIN }));
        tables.push(all.swept("tasks in one adapter", &settings)?);
    }
    if has(Topic::Rows) {
        let settings = [10, 20, 80].map(|rows| (format!("{rows} rows"), Setting { rows, ..MAIN }));
        tables.push(all.swept("rows of each task", &settings)?);
    }
    if has(Topic::Values) {
        let (table, plot) = all.sizes()?;
        tables.push(table);
        plots.push(plot);
    }
    if has(Topic::Parts) {
        tables.push(all.parts(&selection.without)?);
    }
    Ok(Report {
        name: "instructions".to_owned(),
        about: about(size),
        seeds: size.seeds,
        chosen: lab.chosen().clone(),
        tables,
        plots,
    })
}

fn about(size: Size) -> String {
    format!(
        "The demo's base is adapted to {} tasks, each with a name of two words that means nothing to it and {} rows, for {} \
         steps of {BATCH} rows. Measured is exact match on {TESTS} words a task that no training has seen: mean and standard \
         deviation of {} seeds. Learning rate and alpha / r of each method were chosen on {} other seeds, in this setting; \
         with other numbers of tasks and rows they are the same.",
        MAIN.tasks, MAIN.rows, MAIN.steps, size.seeds, size.tuning_seeds
    )
}

/// The methods with the settings that were chosen for them.
struct Compared<'a> {
    lab: &'a Lab,
    size: Size,
    say: Say<'a>,
    chosen: Vec<(Method, Choice)>,
}

impl Compared<'_> {
    fn tuned(&self, method: Method) -> Result<Choice> {
        let choice = tuned(self.lab, method, self.size)?;
        (self.say)(&format!("{}: {}", method.name(), choice.show()));
        Ok(choice)
    }

    /// All seeds of a method, and a row without samples.
    fn measured(
        &self,
        (method, choice): (Method, Choice),
        setting: Setting,
        tested: &[usize],
    ) -> Result<(Vec<Tested>, Row)> {
        let all = seeded(self.lab, method, choice, setting, self.size, tested)?;
        let last = Sample(all.iter().map(Tested::last).collect());
        let (tasks, rows) = (setting.tasks, setting.rows);
        (self.say)(&format!("{}, {tasks} tasks, {rows} rows: {}", method.name(), last.show()));
        let values = values(self.lab, method, choice, setting)?;
        Ok((all, Row { name: method.name(), values, settings: choice.show(), samples: Vec::new() }))
    }

    /// The comparison itself.
    fn steps(&self) -> Result<(Table, Plot)> {
        let (mut rows, mut curves) = (Vec::new(), Vec::new());
        for chosen in &self.chosen {
            let (all, row) = self.measured(*chosen, MAIN, &TESTED)?;
            let point = |(place, steps): (usize, &usize)| {
                let sample = at(&all, place);
                (*steps as f64, sample.mean(), sample.deviation())
            };
            curves.push(Curve { name: row.name.clone(), points: TESTED.iter().enumerate().map(point).collect() });
            let reworded = Sample(all.iter().map(|run| run.reworded).collect());
            let ahead = match rows.first() {
                Some(Row { samples, .. }) => samples[2].minus(&at(&all, TESTED.len() - 1)),
                None => Sample(vec![0.0; all.len()]),
            };
            let samples = vec![at(&all, 1), at(&all, 2), at(&all, TESTED.len() - 1), ahead, reworded];
            rows.push(Row { samples, ..row });
        }
        let title = format!("{} tasks, {} rows each", MAIN.tasks, MAIN.rows);
        let columns = ["50 steps", "100 steps", "250 steps", "the bank is ahead by", "250 steps, names in other words"];
        let plot = Plot { title: title.clone(), x: "steps".to_owned(), y: "exact match".to_owned(), curves };
        Ok((table(title, "method", &columns, rows), plot))
    }

    /// The comparison with other numbers of tasks or rows.
    fn swept(&self, title: &str, settings: &[(String, Setting)]) -> Result<Table> {
        let mut rows = Vec::new();
        for chosen in &self.chosen {
            let mut made: Option<Row> = None;
            for (_, setting) in settings {
                let (all, row) = self.measured(*chosen, *setting, &[setting.steps])?;
                made.get_or_insert(row).samples.push(at(&all, 0));
            }
            rows.extend(made);
        }
        let columns: Vec<&str> = settings.iter().map(|(name, _)| name.as_str()).collect();
        Ok(table(title.to_owned(), "method", &columns, rows))
    }

    /// Methods of several sizes, each tuned.
    fn sizes(&self) -> Result<(Table, Plot)> {
        let bank = |r| Method::Bank(Bank { r, ..Bank::DEFAULT });
        let kinds: [(&str, Vec<Method>); 4] = [
            ("bank", vec![bank(2), bank(4), bank(8)]),
            ("LoRA, q and v", [3, 5, 11].map(Method::Lora).to_vec()),
            ("LoRA, all linears", [1, 2, 3].map(Method::LoraEverywhere).to_vec()),
            ("mixture of LoRAs", [2, 5, 11].map(Method::Mixture).to_vec()),
        ];
        let (mut rows, mut curves) = (Vec::new(), Vec::new());
        for (name, methods) in kinds {
            let mut points = Vec::new();
            for method in methods {
                let known = self.chosen.iter().find(|(of, _)| *of == method);
                let choice = known.map_or_else(|| self.tuned(method), |(_, choice)| Ok(*choice))?;
                let (all, row) = self.measured((method, choice), MAIN, &[100, 250])?;
                points.push((row.values as f64, at(&all, 1).mean(), at(&all, 1).deviation()));
                rows.push(Row { samples: vec![at(&all, 0), at(&all, 1)], ..row });
            }
            curves.push(Curve { name: name.to_owned(), points });
        }
        let title = format!("{} tasks in more or fewer values", MAIN.tasks);
        let (x, y) = ("trained values".to_owned(), "exact match".to_owned());
        let plot = Plot { title: title.clone(), x, y, curves };
        Ok((table(title, "method", &["100 steps", "250 steps"], rows), plot))
    }

    /// The bank, and the bank without one of its parts.
    fn parts(&self, parts: &[Part]) -> Result<Table> {
        let choice = self.chosen[0].1;
        let banks = parts.iter().flat_map(|part| part.banks());
        let mut rows = Vec::new();
        for bank in [Bank::DEFAULT].into_iter().chain(banks) {
            let (all, row) = self.measured((Method::Bank(bank), choice), MAIN, &[100, 250])?;
            rows.push(Row { samples: vec![at(&all, 0), at(&all, 1)], ..row });
        }
        Ok(table("what decides".to_owned(), "bank", &["100 steps", "250 steps"], rows))
    }
}

/// The results after the tested step in this place.
fn at(all: &[Tested], place: usize) -> Sample {
    Sample(all.iter().map(|run| run.exact.get(place).copied().unwrap_or(f64::NAN)).collect())
}

fn table(title: String, of: &str, columns: &[&str], rows: Vec<Row>) -> Table {
    Table { title, of: of.to_owned(), columns: columns.iter().map(|name| (*name).to_owned()).collect(), rows }
}
