//! Classes of transformers with a head for a task in place of the output head: what a model becomes when an adapter with
//! such a head is merged into it.
//!
//! Reference: transformers 5.23 `models/auto/modeling_auto.py` and `modeling_layers.py`; peft `src/peft/peft_model.py`
//! for the names of heads.

use super::Config;
use super::params::class;

/// A task, by PEFT's `task_type`.
#[derive(Debug)]
struct Task {
    /// The value of `task_type`.
    name: &'static str,
    /// The end of the names of classes.
    suffix: &'static str,
    /// The beginnings of the names of classes that transformers has.
    models: &'static [&'static str],
}

const TASKS: [Task; 3] = [
    Task { name: "SEQ_CLS", suffix: "ForSequenceClassification", models: OF_SEQUENCES },
    Task { name: "TOKEN_CLS", suffix: "ForTokenClassification", models: OF_TOKENS },
    Task { name: "QUESTION_ANS", suffix: "ForQuestionAnswering", models: OF_ANSWERS },
];

#[rustfmt::skip]
const OF_SEQUENCES: &[&str] = &[
    "AXK1", "AXK2", "Albert", "Arcee", "Bart", "Bert", "BigBird", "BigBirdPegasus", "BioGpt", "Bloom", "CTRL", "Camembert", "Canine",
    "CohereCompassText", "ConvBert", "Data2VecText", "Deberta", "DebertaV2", "DeepseekV2", "DeepseekV3", "DiffLlama", "DistilBert", "Doge",
    "Electra", "Ernie", "Esm", "Esmc", "EuroBert", "Exaone4", "FNet", "Falcon", "Flaubert", "Funnel", "GPT2", "GPTBigCode", "GPTJ", "GPTNeo",
    "GPTNeoX", "Gemma", "Gemma2", "Gemma3", "Gemma3Text", "Glm", "Glm4", "GptOss", "Gte", "Helium", "HunYuanDenseV1", "HunYuanMoEV1", "IBert",
    "Jamba", "JetMoe", "JinaEmbeddingsV3", "LayoutLM", "LayoutLMv2", "LayoutLMv3", "Lilt", "Llama", "Longformer", "Luke", "MBart", "MPNet", "MT5",
    "MarkupLM", "MegatronBert", "MiniCPM3", "MiniMax", "Ministral", "Ministral3", "Mistral", "Mistral4", "Mixtral", "MobileBert", "ModernBert",
    "ModernBertDecoder", "ModernVBert", "Mpt", "Mra", "Mvp", "Nemotron", "NomicBert", "Nystromformer", "OPT", "Olmo", "Olmo2", "Olmo3", "OpenAIGPT",
    "PLBart", "Perceiver", "Persimmon", "Phi", "Phi3", "Phimoe", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3Moe", "Qwen3Next", "Qwen3_5", "Qwen3_5Text",
    "Reformer", "RemBert", "RoCBert", "RoFormer", "Roberta", "RobertaPreLayerNorm", "SeedOss", "SmolLM3", "SqueezeBert", "StableLm", "Starcoder2",
    "T5", "T5Gemma", "T5Gemma2", "Tapas", "UMT5", "UltraVBert", "Ultrabert", "XLM", "XLMRoberta", "XLMRobertaXL", "XLNet", "Xmod", "Yoso", "Zamba",
    "Zamba2",
];

#[rustfmt::skip]
const OF_TOKENS: &[&str] = &[
    "AXK1", "AXK2", "Albert", "Apertus", "Arcee", "Bert", "BigBird", "BioGpt", "Bloom", "Bros", "Camembert", "Canine", "ConvBert", "Data2VecText",
    "Deberta", "DebertaV2", "DeepseekV3", "DiffLlama", "DistilBert", "Electra", "Ernie", "Esm", "Esmc", "EuroBert", "Exaone4", "FNet", "Falcon",
    "Flaubert", "Funnel", "GPT2", "GPTBigCode", "GPTNeo", "GPTNeoX", "Gemma", "Gemma2", "Glm", "Glm4", "GptOss", "Gte", "Helium", "IBert",
    "JinaEmbeddingsV3", "LayoutLM", "LayoutLMv2", "LayoutLMv3", "Lilt", "Llama", "Longformer", "Luke", "MPNet", "MT5", "MarkupLM", "MegatronBert",
    "MiniMax", "Ministral", "Ministral3", "Mistral", "Mistral4", "Mixtral", "MobileBert", "ModernBert", "ModernVBert", "Mpt", "Mra", "Nemotron",
    "NomicBert", "Nystromformer", "OpenAIPrivacyFilter", "Persimmon", "Phi", "Phi3", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3ASR", "Qwen3Moe",
    "Qwen3Next", "Qwen3_5", "RemBert", "RoCBert", "RoFormer", "Roberta", "RobertaPreLayerNorm", "SeedOss", "SmolLM3", "SqueezeBert", "StableLm",
    "Starcoder2", "T5", "T5Gemma", "T5Gemma2", "UMT5", "UltraVBert", "Ultrabert", "XLM", "XLMRoberta", "XLMRobertaXL", "XLNet", "Xmod", "Yoso",
];

#[rustfmt::skip]
const OF_ANSWERS: &[&str] = &[
    "Albert", "Arcee", "Bart", "Bert", "BigBird", "BigBirdPegasus", "Bloom", "Camembert", "Canine", "ConvBert", "Data2VecText", "Deberta",
    "DebertaV2", "DiffLlama", "DistilBert", "Electra", "Ernie", "Exaone4", "FNet", "Falcon", "Funnel", "GPT2", "GPTJ", "GPTNeo", "GPTNeoX", "IBert",
    "JinaEmbeddingsV3", "LED", "LayoutLMv2", "LayoutLMv3", "Lilt", "Llama", "Longformer", "Luke", "Lxmert", "MBart", "MPNet", "MT5", "MarkupLM",
    "MegatronBert", "MiniMax", "Ministral", "Ministral3", "Mistral", "Mixtral", "MobileBert", "ModernBert", "Mpt", "Mra", "Mvp", "Nemotron",
    "Nystromformer", "OPT", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3Moe", "Qwen3Next", "Reformer", "RemBert", "RoCBert", "RoFormer", "Roberta",
    "RobertaPreLayerNorm", "SeedOss", "SmolLM3", "Splinter", "SqueezeBert", "T5", "UMT5", "Ultrabert", "XLMRoberta", "XLMRobertaXL", "Xmod", "Yoso",
];

/// Models whose class for answers calls the inner model `transformer`, while their other classes call it `model`.
const TRANSFORMERS: [&str; 12] = [
    "Arcee",
    "DiffLlama",
    "Exaone4",
    "Llama",
    "Ministral",
    "Nemotron",
    "Qwen2",
    "Qwen3",
    "Qwen3Moe",
    "Qwen3Next",
    "SeedOss",
    "SmolLM3",
];

/// Encoders whose class for sequences has a head in place of the pooler. Other encoders' classes for sequences have a pooler;
/// no class for tokens or answers has one.
const WITHOUT_POOLER: [&str; 12] = [
    "Camembert",
    "Data2VecText",
    "Esm",
    "IBert",
    "Lilt",
    "Longformer",
    "MPNet",
    "Roberta",
    "RobertaPreLayerNorm",
    "XLMRoberta",
    "XLMRobertaXL",
    "Xmod",
];

/// Names of a head's modules. The last ones also belong to heads for other tasks.
const HEADS: [&str; 7] =
    ["score", "classifier", "qa_outputs", "classification_head", "pre_classifier", "dense", "head"];

/// How many of [`HEADS`] belong to heads for one task.
const OF_ONE_TASK: usize = 5;

/// Modules of other classes' heads, which a class for a task doesn't have.
const OF_OTHERS: [&str; 10] = [
    "lm_head",
    "embed_out",
    "cls",
    "predictions",
    "vocab_transform",
    "vocab_layer_norm",
    "vocab_projector",
    "generator_predictions",
    "generator_lm_head",
    "discriminator_predictions",
];

/// Endings of the name of the weight that has a row for every label.
const LABELS: [&str; 4] = ["score.weight", "classifier.weight", "out_proj.weight", "qa_outputs.weight"];

/// A class with a head for a task, which a base becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TaskClass {
    /// The class.
    pub(crate) name: String,
}

impl TaskClass {
    /// The class that the model of `config` becomes for PEFT's task `task_type`, or its name if transformers doesn't have
    /// it. `None` if there is no such task, or the model is of that class already.
    pub(crate) fn of(config: &Config, task_type: &str) -> Option<Result<Self, String>> {
        let task = TASKS.iter().find(|task| task.name == task_type)?;
        let own = class(config)?;
        if own.ends_with(task.suffix) {
            return None;
        }
        let model = own.find("For").map_or(own, |end| &own[..end]);
        let model = ["LMHeadModel", "Model"].iter().find_map(|end| model.strip_suffix(end)).unwrap_or(model);
        let name = format!("{model}{}", task.suffix);
        Some(if task.models.contains(&model) { Ok(Self { name }) } else { Err(name) })
    }

    /// The class's name of the base's tensor `name`.
    pub(crate) fn own_name(&self, name: &str) -> String {
        let model = self.name.strip_suffix("ForQuestionAnswering").filter(|model| TRANSFORMERS.contains(model));
        match name.strip_prefix("model.").filter(|_| model.is_some()) {
            Some(rest) => format!("transformer.{rest}"),
            None => name.to_owned(),
        }
    }

    /// Whether a tensor of this name belongs to the head of a class for a task.
    pub(crate) fn has(name: &str) -> bool {
        name.split('.').next().is_some_and(|first| HEADS.contains(&first)) && name.contains('.')
    }

    /// Whether the class leaves out the base's tensor `name`, as part of another head or as a pooler.
    pub(crate) fn leaves_out(&self, name: &str) -> bool {
        let first = name.split('.').next().unwrap_or_default();
        let model = self.name.strip_suffix(TASKS[0].suffix);
        let has_pooler = model.is_some_and(|model| !WITHOUT_POOLER.contains(&model));
        let is_pooler = name.split('.').take(2).any(|part| part == "pooler");
        OF_OTHERS.contains(&first) || HEADS[..OF_ONE_TASK].contains(&first) || is_pooler && !has_pooler
    }

    /// Whether the tensor called `name` has a row for every label.
    pub(crate) fn counts_labels(name: &str) -> bool {
        Self::has(name) && LABELS.iter().any(|end| name.ends_with(end))
    }

    /// Makes `config` that of the class, with `labels` labels.
    pub(crate) fn describe(&self, config: &mut Config, labels: Option<usize>) {
        config.insert("architectures".to_owned(), serde_json::json!([self.name]));
        let Some(labels) = labels else { return };
        let named = config.get("id2label").and_then(|map| map.as_object()).map(serde_json::Map::len);
        // Two labels are transformers' default, and no map says so.
        if named.unwrap_or(2) == labels {
            return;
        }
        let names: Vec<(String, usize)> = (0..labels).map(|label| (format!("LABEL_{label}"), label)).collect();
        let by_id: Config = names.iter().map(|(name, id)| (id.to_string(), name.clone().into())).collect();
        let by_name: Config = names.iter().map(|(name, id)| (name.clone(), (*id).into())).collect();
        config.insert("id2label".to_owned(), by_id.into());
        config.insert("label2id".to_owned(), by_name.into());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_class_for_a_task_is_one_that_transformers_has() {
        let of = |class: &str, task: &str| {
            TaskClass::of(json!({"architectures": [class]}).as_object().unwrap(), task).map(|r| r.map(|c| c.name))
        };
        let named = |name: &str| Some(Ok(name.to_owned()));
        assert_eq!(of("LlamaForCausalLM", "SEQ_CLS"), named("LlamaForSequenceClassification"));
        assert_eq!(of("GPT2LMHeadModel", "TOKEN_CLS"), named("GPT2ForTokenClassification"));
        assert_eq!(of("BertModel", "QUESTION_ANS"), named("BertForQuestionAnswering"));
        assert_eq!(of("LlamaForSequenceClassification", "SEQ_CLS"), None);
        assert_eq!(of("LlamaForCausalLM", "CAUSAL_LM"), None);
        assert_eq!(of("MambaForCausalLM", "SEQ_CLS"), Some(Err("MambaForSequenceClassification".to_owned())));
    }

    #[test]
    fn labels_are_named_unless_the_config_has_as_many() {
        let class = TaskClass { name: "LlamaForSequenceClassification".to_owned() };
        let described = |config: serde_json::Value, labels| {
            let mut config = config.as_object().unwrap().clone();
            class.describe(&mut config, labels);
            serde_json::Value::Object(config)
        };
        let three = described(json!({}), Some(3));
        assert_eq!(three["id2label"], json!({"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}));
        assert_eq!(three["label2id"]["LABEL_2"], 2);
        assert!(described(json!({}), Some(2)).get("id2label").is_none());
        let own = json!({"id2label": {"0": "a", "1": "b", "2": "c"}});
        assert_eq!(described(own.clone(), Some(3))["id2label"], own["id2label"]);
        let answers = TaskClass { name: "LlamaForQuestionAnswering".to_owned() };
        assert_eq!(answers.own_name("model.norm.weight"), "transformer.norm.weight");
        assert_eq!(class.own_name("model.norm.weight"), "model.norm.weight");
        assert!(class.leaves_out("lm_head.weight") && !class.leaves_out("model.norm.weight"));
        let named = |name: &str| TaskClass { name: name.to_owned() };
        assert!(!named("BertForSequenceClassification").leaves_out("bert.pooler.dense.weight"));
        assert!(named("BertForTokenClassification").leaves_out("pooler.dense.weight"));
        assert!(named("RobertaForSequenceClassification").leaves_out("roberta.pooler.dense.weight"));
        assert!(TaskClass::counts_labels("classifier.out_proj.weight") && !TaskClass::counts_labels("score.bias"));
    }
}
