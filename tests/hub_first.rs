//! Models of a hub on this machine, in the program: what can be refused is refused, and what can be said is said, before
//! weights are fetched.

#[path = "../src/checkpoint/hub/tests/server.rs"]
mod hub;
#[path = "common/program.rs"]
mod program;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use hub::{Act, Asked, Hub, Phase};
use program::{copy, done, fixture, text};

const NAME: &str = "hf:org/model";

/// A hub with one model, and a user with an empty cache.
struct Place {
    hub: Hub,
    dir: tempfile::TempDir,
}

impl Place {
    /// With the files of a fixture's folder.
    fn with(folder: &Path) -> Self {
        let place = Self { hub: Hub::with(&[]), dir: tempfile::tempdir().unwrap() };
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            place.file(path.file_name().unwrap().to_str().unwrap(), fs::read(&path).unwrap());
        }
        fs::create_dir(place.at("tmp")).unwrap();
        place
    }

    fn model() -> Self {
        Self::with(&fixture("demo/base"))
    }

    fn file(&self, name: &str, bytes: Vec<u8>) {
        self.hub.state.lock().unwrap().files.insert(name.to_owned(), bytes);
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_atombank"));
        command.args(args).current_dir(self.dir.path()).env("HF_HOME", self.at("home")).env("TMPDIR", self.at("tmp"));
        for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &self.hub.endpoint);
        command
    }

    #[track_caller]
    fn done(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        self.nothing_is_left();
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
    }

    /// The one line that a command is refused with.
    #[track_caller]
    fn refused(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let stderr = String::from_utf8(out.stderr).unwrap();
        let lines: Vec<&str> = stderr.lines().filter(|line| !line.starts_with("note: ")).collect();
        assert_eq!((out.status.code(), lines.len()), (Some(1), 1), "{args:?}: {stderr}");
        self.nothing_is_left();
        assert!(!lines[0].contains(text(&self.at("tmp"))), "{stderr}");
        lines[0].to_owned()
    }

    #[track_caller]
    fn nothing_is_left(&self) {
        let left: Vec<_> = fs::read_dir(self.at("tmp")).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }

    /// Requests for values of weights since the last time: all but short ranges.
    fn values(&self) -> Vec<Asked> {
        let short = |asked: &Asked| {
            let range = asked.range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
            let size = self.hub.state.lock().unwrap().files[&asked.file].len();
            let number = |text: &str| text.parse::<usize>().ok();
            let len = range.and_then(|(start, end)| Some(number(end)? - number(start)?));
            len.is_some_and(|len| len < size / 2)
        };
        self.hub.asked().into_iter().filter(|asked| asked.phase == Phase::Large && !short(asked)).collect()
    }
}

#[test]
fn what_can_be_refused_is_refused_before_weights_are_fetched() {
    let place = Place::model();
    let json = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(fixture("demo/base").join(name)).unwrap()).unwrap()
    };
    let (config, tokenizer) = (json("config.json"), json("tokenizer.json"));
    let with = |change: (&str, serde_json::Value)| {
        let mut config = config.clone();
        config[change.0] = change.1;
        config.to_string().into_bytes()
    };
    let unknown = with(("architectures", serde_json::json!(["NobodyForCausalLM"])));
    let wide = with(("hidden_size", serde_json::json!(72)));
    let mut odd = tokenizer;
    odd["model"]["type"] = "Unheard".into();
    let cases: [(&str, Vec<u8>, &[&str], &str); 6] = [
        (
            "config.json",
            unknown.clone(),
            &["convert", NAME, "-o", "x.gguf", "--type", "Q4_K_M"],
            "found NobodyForCausalLM",
        ),
        ("config.json", wide, &["convert", NAME, "-o", "x.gguf"], "config.json"),
        ("config.json", b"{".to_vec(), &["convert", NAME, "-o", "x"], "config.json"),
        ("tokenizer.json", odd.to_string().into_bytes(), &["convert", NAME, "-o", "x.gguf"], "tokenizer.json"),
        ("tokenizer.json", b"{".to_vec(), &["generate", NAME, "--prompt", "x"], "tokenizer.json"),
        ("config.json", unknown, &["generate", NAME, "--prompt", "x"], "NobodyForCausalLM"),
    ];
    for (file, bytes, args, expected) in cases {
        let place = Place::model();
        place.file(file, bytes);
        let message = place.refused(args);
        assert!(message.contains(expected), "{args:?}: {message}");
        assert_eq!(place.values(), [], "{args:?}: {message}");
        assert!(!place.at("x").exists() && !place.at("x.gguf").exists());
    }
    // What is wrong with the output is known before anything is asked for.
    fs::write(place.at("there.gguf"), "x").unwrap();
    let commands: [&[&str]; 5] = [
        &["convert", NAME, "-o", "there.gguf"],
        &["convert", NAME, "-o", "no/such/folder/x.gguf"],
        &["merge", NAME, "adapter", "-o", "no/such/folder/x"],
        &["quantize", NAME, "-o", "there.gguf", "--type", "Q8_0"],
        &["extract", NAME, NAME, "-o", "no/such/folder/x"],
    ];
    for args in commands {
        place.refused(args);
        assert_eq!(place.hub.asked(), [], "{args:?}");
    }
}

#[test]
fn a_model_that_can_be_converted_is_fetched_once_and_converted_as_from_a_folder() {
    let place = Place::model();
    place.done(&["convert", NAME, "-o", "x.gguf", "--model-name", "x"]);
    assert_eq!(place.values().len(), 1);
    let local = place.at("local.gguf");
    done(&["convert", text(&fixture("demo/base")), "-o", text(&local), "--model-name", "x"]);
    // Keys may name the model's place; its tensors come after them.
    let tensors = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        bytes[bytes.len() - 1_000_000..].to_vec()
    };
    assert_eq!(tensors(&place.at("x.gguf")), tensors(&local));
    // The second time nothing is asked.
    place.done(&["convert", NAME, "-o", "y.gguf", "--model-name", "x"]);
    assert_eq!(place.hub.asked(), []);
    assert_eq!(fs::read(place.at("x.gguf")).unwrap(), fs::read(place.at("y.gguf")).unwrap());
    // Everything is as it would be, had the weights been there: the temporary folder is named nowhere.
    let dry = |place: &Place| place.done(&["convert", NAME, "-o", "z.gguf", "--dry-run", "--json", "--quiet"]);
    assert_eq!(dry(&Place::model()), dry(&place));
    let looked_at = |place: &Place| place.done(&["inspect", NAME, "--json", "--tensors"]);
    assert_eq!(looked_at(&Place::model()), looked_at(&place));
}

#[test]
fn adapters_are_planned_on_names_and_shapes_of_their_base() {
    let (base, lora) = (fixture("demo/base"), fixture("demo/lora"));
    let place = Place::model();
    // Of a LoRA that becomes a GGUF no value of the base is needed, of a merge only by the merge itself.
    place.done(&["convert", text(&lora), "--base", NAME, "-o", "lora.gguf"]);
    place.done(&["merge", NAME, text(&lora), "-o", "merged", "--dry-run"]);
    let other = fixture("lora/plain");
    place.refused(&["merge", NAME, text(&other), "-o", "merged"]);
    assert_eq!(place.values(), []);
    place.done(&["merge", NAME, text(&lora), "-o", "merged"]);
    assert_eq!(place.values().len(), 1);
    done(&["merge", text(&base), text(&lora), "-o", text(&place.at("local"))]);
    let weights = |folder: &str| fs::read(place.at(folder).join("model.safetensors")).unwrap();
    assert_eq!(weights("merged"), weights("local"));
    // The same where the adapter is from the hub.
    let adapter = Place::with(&lora);
    let small = copy(&fixture("lora/base"), &adapter.at("small"));
    adapter.refused(&["merge", text(&small), NAME, "-o", "merged"]);
    assert_eq!(adapter.values(), []);
    adapter.done(&["merge", text(&base), NAME, "-o", "merged"]);
    assert_eq!(fs::read(adapter.at("merged/model.safetensors")).unwrap(), weights("local"));
}

#[test]
fn a_bank_of_filter_atoms_is_known_by_its_name() {
    let case = fixture("filter-atoms/resnet2d");
    let place = Place::with(&case.join("bank"));
    let model = case.join("model");
    place.done(&["bake", text(&model), NAME, "-o", "by-name.safetensors"]);
    place.done(&["bake", text(&model), text(&case.join("bank")), "-o", "by-path.safetensors"]);
    assert_eq!(fs::read(place.at("by-name.safetensors")).unwrap(), fs::read(place.at("by-path.safetensors")).unwrap());
}

#[test]
fn headers_that_a_killed_process_left_go_with_the_next_run() {
    let place = Place::model();
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let [dead, living] = [child.id(), std::process::id()].map(|id| place.at(&format!("tmp/atombank-hub-{id}.left")));
    for folder in [&dead, &living] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("model.safetensors"), "header").unwrap();
    }
    place.command(&["inspect", NAME]).status().unwrap();
    assert!(!dead.exists() && living.exists());
    fs::remove_dir_all(living).unwrap();
    place.nothing_is_left();
}

#[test]
fn of_a_gguf_that_is_looked_at_the_header_is_fetched() {
    let local = tempfile::tempdir().unwrap();
    let gguf = local.path().join("model.gguf");
    done(&["convert", text(&fixture("demo/base")), "-o", text(&gguf), "--type", "f32"]);
    let place = Place::with(local.path());
    for name in [NAME, "hf:org/model/model.gguf"] {
        let shown = place.done(&["inspect", name, "--tensors"]);
        assert!(shown.contains("blk.0.attn_q.weight"), "{shown}");
        let shown = place.done(&["quantize", name, "-o", "x.gguf", "--type", "Q8_0", "--dry-run"]);
        assert!(shown.contains("bits per weight"), "{shown}");
        let refused = place.refused(&["quantize", name, "-o", "x.gguf", "--type", "IQ2_XXS"]);
        assert!(refused.contains("importance"), "{refused}");
        assert_eq!(place.values(), [], "{name}");
    }
    place.done(&["quantize", NAME, "-o", "x.gguf", "--type", "Q8_0"]);
    assert_eq!(place.values().len(), 1);
    done(&["quantize", text(&gguf), "-o", text(&place.at("local.gguf")), "--type", "Q8_0"]);
    assert_eq!(fs::read(place.at("x.gguf")).unwrap(), fs::read(place.at("local.gguf")).unwrap());
}

#[test]
fn of_a_pytorch_file_its_directory_and_its_pickle_are_fetched() {
    let local = tempfile::tempdir().unwrap();
    let folder = local.path().join("pytorch");
    done(&["convert", text(&fixture("demo/base")), "-o", text(&folder), "--to", "pytorch"]);
    let place = Place::with(&folder);
    let looked_at = ["inspect", NAME, "--json", "--tensors"];
    let shown = place.done(&looked_at);
    assert!(shown.contains("model.layers.0.self_attn.q_proj.weight"), "{shown}");
    place.refused(&["merge", NAME, text(&fixture("lora/plain")), "-o", "merged"]);
    place.done(&["merge", NAME, text(&fixture("demo/lora")), "-o", "merged", "--dry-run"]);
    assert_eq!(place.values(), []);
    place.done(&["convert", NAME, "-o", "x.gguf", "--model-name", "x"]);
    assert_eq!(place.values().len(), 1);
    assert_eq!(place.done(&looked_at), shown);
    let base = Place::model();
    base.done(&["convert", NAME, "-o", "x.gguf", "--model-name", "x"]);
    assert_eq!(fs::read(place.at("x.gguf")).unwrap(), fs::read(base.at("x.gguf")).unwrap());
    // Before torch had zips, a file had no directory.
    let old = Place::with(&folder);
    old.file("pytorch_model.bin", fs::read(fixture("pytorch/legacy.bin")).unwrap());
    assert!(old.done(&["inspect", NAME]).contains("tensors"));
}

#[test]
fn a_header_that_was_damaged_on_its_way_is_no_reason_to_refuse() {
    let weights = "model.safetensors";
    let place = Place::model();
    place.hub.acts(Phase::Large, weights, &[Act::Zero]);
    let message = place.refused(&["convert", NAME, "-o", "x.gguf"]);
    assert!(message.contains("model.safetensors: expected content with the sha256"), "{message}");
    place.hub.acts(Phase::Large, weights, &[Act::Zero, Act::Well]);
    place.done(&["convert", NAME, "-o", "x.gguf"]);
    // What is no such file at all is called so by the name that it has in the cache.
    let place = Place::model();
    place.file(weights, b"no safetensors".to_vec());
    let message = place.refused(&["convert", NAME, "-o", "x.gguf"]);
    assert!(message.contains("/snapshots/") && message.contains("safetensors header"), "{message}");
}

#[test]
fn a_process_that_was_killed_leaves_what_the_next_one_goes_on_with() {
    let (place, weights) = (Place::model(), "model.safetensors");
    place.hub.acts(Phase::Large, weights, &[Act::Well, Act::Slow(20_000, Duration::from_millis(50))]);
    let mut killed = place.command(&["convert", NAME, "-o", "x.gguf"]).stderr(Stdio::null()).spawn().unwrap();
    let part = || {
        let blobs = fs::read_dir(place.at("home/hub/models--org--model/blobs")).into_iter().flatten().flatten();
        let mut parts = blobs.filter(|entry| entry.path().extension().is_some_and(|end| end == "incomplete"));
        parts.next().map_or(0, |part| part.metadata().unwrap().len())
    };
    while part() < 300_000 {
        std::thread::sleep(Duration::from_millis(10));
        assert!(killed.try_wait().unwrap().is_none(), "it has ended");
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    let left = part();
    place.hub.asked();
    place.hub.acts(Phase::Large, weights, &[Act::Well]);
    // Its lock is gone with it, and so are its headers: they aren't kept while weights are fetched.
    place.done(&["convert", NAME, "-o", "x.gguf"]);
    let asked = place.values();
    assert_eq!(asked.iter().map(|asked| asked.range.clone()).collect::<Vec<_>>(), [Some(format!("bytes={left}-"))]);
}

#[test]
fn a_temporary_folder_that_cannot_be_made_is_done_without() {
    let place = Place::model();
    fs::remove_dir(place.at("tmp")).unwrap();
    fs::write(place.at("tmp"), "a file").unwrap();
    let out = place.run(&["convert", NAME, "-o", "x.gguf"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(place.at("x.gguf").is_file());
}
