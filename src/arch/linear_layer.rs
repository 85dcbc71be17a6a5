//! The linear layers of a decoder, on which adapters act.

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use super::lookup::own_spelling;
use super::names::ends_path;
use super::parts::Part;
use super::{Family, Row, registry};

/// A linear layer of a decoder layer: its module's path in the class of transformers. Values sort in the order in which
/// a forward pass calls them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Module(u16);

/// What is known about a module.
struct Known {
    /// The path, with `{l}` for the layer.
    path: String,
    /// The name of its weight in GGUF, with `{l}` for the layer.
    #[cfg_attr(not(feature = "train"), allow(dead_code))] // For importance matrices.
    gguf: String,
    part: Option<Part>,
}

/// The modules of all families that run, in execution order.
struct Modules {
    all: Vec<Known>,
    by_path: HashMap<String, Module>,
}

static MODULES: LazyLock<Modules> = LazyLock::new(|| {
    let mut all: Vec<Known> = Vec::new();
    for family in registry::decoders() {
        for row in family.rows.iter().filter(|row| is_module(row)) {
            let path = path(family, row);
            if all.iter().all(|known| known.path != path) {
                all.push(Known { path, gguf: row.gguf.text().to_owned(), part: Part::of(row) });
            }
        }
    }
    all.sort_by(|known, other| (known.part, &known.path).cmp(&(other.part, &other.path)));
    let by_path = all.iter().zip(0..).map(|(known, number)| (known.path.clone(), Module(number))).collect();
    Modules { all, by_path }
});

/// Whether a row is the weight of a linear layer in every decoder layer.
fn is_module(row: &Row) -> bool {
    row.role.is_linear() && !row.is_bias() && row.gguf.has_layer() && Part::of(row).is_some()
}

/// The path of a row's module in the class of transformers.
fn path(family: &Family, row: &Row) -> String {
    // Renames are of names with numbers.
    const LAYER: &str = ".7.";
    let name = row.source().name.text().replace(".{l}.", LAYER);
    let name = own_spelling(family, &name, None).replace(LAYER, ".{l}.");
    name.strip_suffix(".weight").map(str::to_owned).unwrap_or(name)
}

impl Module {
    /// The module of a row; `None` for one that isn't a linear layer of a decoder that runs.
    pub(crate) fn of_row(family: &Family, row: &Row) -> Option<Self> {
        if !is_module(row) {
            return None;
        }
        MODULES.by_path.get(&path(family, row)).copied()
    }

    /// The module with this path, in which `{l}` stands for the layer.
    pub fn of_path(path: &str) -> Option<Self> {
        MODULES.by_path.get(path).copied()
    }

    fn known(self) -> &'static Known {
        &MODULES.all[usize::from(self.0)]
    }

    /// Whether it makes keys and values of latent ones.
    #[cfg(feature = "train")]
    pub(crate) fn is_of_latent(self) -> bool {
        self.known().part == Some(Part::KvB)
    }

    /// The last part of its path, as `target_modules` mostly has it: `q_proj`.
    pub fn name(self) -> &'static str {
        let path = &self.known().path;
        path.rsplit_once('.').map_or(path, |(_, name)| name)
    }

    /// The place of the first module with this name in the order of a forward pass.
    pub(crate) fn place_of(name: &str) -> Option<usize> {
        (0..MODULES.all.len()).find(|number| Module(*number as u16).name() == name)
    }

    /// Whether `target`, an entry of `target_modules`, selects a linear layer of any decoder that runs.
    pub fn is_target(target: &str) -> bool {
        let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let layer = target.split('.').find(is_number).unwrap_or("0");
        MODULES.all.iter().any(|known| ends_path(&known.path.replace("{l}", layer), target))
    }

    /// The names of all modules, each once, in the order of a forward pass.
    pub(crate) fn names() -> Vec<&'static str> {
        let mut names: Vec<&str> = Vec::new();
        for number in 0..MODULES.all.len() {
            let name = Module(number as u16).name();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}

/// One linear layer of a decoder. Values sort in execution order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinearLayer {
    /// The decoder layer, from 0.
    pub layer: usize,
    /// The linear layer in it.
    pub module: Module,
}

impl fmt::Display for LinearLayer {
    /// The module path in transformers: `model.layers.0.self_attn.q_proj`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.module.known().path.replace("{l}", &self.layer.to_string()))
    }
}

impl LinearLayer {
    /// Whether an entry of `target_modules` selects it: the end of its path, as in PEFT.
    pub fn is_selected_by(self, target: &str) -> bool {
        ends_path(&self.to_string(), target)
    }

    /// The name of its weight in the base model.
    pub fn weight_name(self) -> String {
        format!("{self}.weight")
    }

    /// The linear layer of this path.
    fn of_path(path: &str) -> Option<LinearLayer> {
        let number = path.split('.').find(|part| part.bytes().all(|byte| byte.is_ascii_digit()))?;
        let module = Module::of_path(&path.replacen(&format!(".{number}."), ".{l}.", 1))?;
        let site = LinearLayer { layer: number.parse().ok()?, module };
        // Comparing the whole path refuses spellings like "00" that would not be written back.
        (site.to_string() == path).then_some(site)
    }

    /// The linear layer whose weight is called `name`.
    pub(crate) fn of_weight(name: &str) -> Option<LinearLayer> {
        Self::of_path(name.strip_suffix(".weight")?)
    }

    /// The name of its weight in GGUF.
    #[cfg(feature = "train")]
    pub(crate) fn gguf_name(self) -> String {
        self.module.known().gguf.replace("{l}", &self.layer.to_string())
    }

    /// The name of its `lora_A` or `lora_B` in an adapter file.
    pub(crate) fn factor_name(self, which: char) -> String {
        format!("base_model.model.{self}.lora_{which}.weight")
    }

    /// The name of its magnitudes (DoRA) in an adapter file.
    pub(crate) fn magnitude_name(self) -> String {
        format!("base_model.model.{self}.lora_magnitude_vector")
    }

    /// The linear layer whose magnitudes are called `name`.
    pub(crate) fn of_magnitude(name: &str) -> Option<LinearLayer> {
        Self::of_path(name.strip_prefix("base_model.model.")?.strip_suffix(".lora_magnitude_vector")?)
    }

    /// The linear layer whose `lora_A` or `lora_B` is called `name`.
    pub(crate) fn of_factor(name: &str, which: char) -> Option<LinearLayer> {
        let path = name.strip_prefix("base_model.model.")?;
        Self::of_path(path.strip_suffix(&format!(".lora_{which}.weight"))?)
    }
}
