//! Downloads that break off, stall or bring something else.

use std::fs;
use std::time::{Duration, Instant};

use super::server::{Act, Hub, Phase, etag};
use super::{HubSettings, files_below, run};

const WEIGHTS: &str = "model.safetensors";

/// A text of some length, no two parts of which are alike.
fn long_text() -> String {
    (0..20_000).map(|i| format!("{i} ")).collect()
}

/// A hub with a model whose weights are of some length, and an empty cache.
fn model() -> (Hub, tempfile::TempDir, String) {
    let text = long_text();
    let hub = Hub::with(&[("config.json", "{}"), (WEIGHTS, &text)]);
    (hub, tempfile::tempdir().unwrap(), text)
}

fn part(cache: &tempfile::TempDir, text: &str) -> std::path::PathBuf {
    let name = format!("{}.incomplete", etag(WEIGHTS, text.as_bytes()));
    cache.path().join("hub/models--org--model/blobs").join(name)
}

#[test]
fn a_download_goes_on_where_it_broke_off() {
    let (hub, cache, text) = model();
    let settings = hub.settings(&cache);
    hub.acts(Phase::Large, WEIGHTS, &[Act::Truncate(40_000), Act::Status(503, "")]);
    let first = run("hf:org/model", &settings);
    assert!(first.message().contains("model.safetensors: expected an answer of http://"), "{}", first.message());
    assert!(first.message().contains("found status 503"), "{}", first.message());
    assert_eq!(fs::metadata(part(&cache, &text)).unwrap().len(), 40_000);

    hub.asked();
    hub.acts(Phase::Large, WEIGHTS, &[Act::Status(503, ""), Act::Truncate(30_000), Act::Well]);
    let second = run("hf:org/model", &settings);
    assert_eq!(fs::read_to_string(second.path().join(WEIGHTS)).unwrap(), text);
    let ranges: Vec<_> = hub.asked().into_iter().filter(|asked| asked.phase == Phase::Large).map(|a| a.range).collect();
    let from = |n: usize| Some(format!("bytes={n}-"));
    assert_eq!(ranges, [from(40_000), from(40_000), from(70_000)]);
    assert!(!part(&cache, &text).exists());
    assert!(second.noted("status 503; trying again"), "{:?}", second.notes);
}

#[test]
fn a_part_that_cannot_be_right_is_thrown_away() {
    for (left, note) in [
        ("x".repeat(200_000), "the part of an earlier download has 200000 bytes"),
        ("x".repeat(1000), "with the part that was there already its sha256 is wrong"),
        ("x".repeat(long_text().len()), "with the part that was there already its sha256 is wrong"),
    ] {
        let (hub, cache, text) = model();
        let path = part(&cache, &text);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, left).unwrap();
        let run = run("hf:org/model", &hub.settings(&cache));
        assert_eq!(fs::read_to_string(run.path().join(WEIGHTS)).unwrap(), text);
        assert!(run.noted(note), "{note}: {:?}", run.notes);
        assert!(!path.exists());
    }
}

#[test]
fn other_content_never_gets_the_name() {
    for act in [Act::Flip, Act::Zero] {
        for (phase, file, kind) in
            [(Phase::Large, WEIGHTS, "sha256"), (Phase::Get, "config.json", "SHA-1 as a blob of git")]
        {
            let (hub, cache, _) = model();
            hub.acts(phase, file, std::slice::from_ref(&act));
            let run = run("hf:org/model", &hub.settings(&cache));
            let message = run.message();
            assert!(message.contains(&format!("{file}: expected content with the {kind} ")), "{message}");
            let left = files_below(cache.path());
            assert!(!left.iter().any(|name| name.ends_with(file) || name.contains("incomplete")), "{left:?}");
            // The hub is well again: nothing of it is left.
            hub.acts(phase, file, &[Act::Well]);
            assert!(super::run("hf:org/model", &hub.settings(&cache)).result.is_ok());
        }
    }
}

#[test]
fn an_answer_of_another_length_than_announced_is_not_taken() {
    let (hub, cache, text) = model();
    hub.acts(Phase::Large, WEIGHTS, &[Act::Short(50_000), Act::Short(10), Act::Well]);
    assert_eq!(fs::read_to_string(run("hf:org/model", &hub.settings(&cache)).path().join(WEIGHTS)).unwrap(), text);

    let (hub, cache, text) = model();
    hub.acts(Phase::Large, WEIGHTS, &[Act::Long, Act::Well]);
    assert_eq!(fs::read_to_string(run("hf:org/model", &hub.settings(&cache)).path().join(WEIGHTS)).unwrap(), text);

    let (hub, cache, _) = model();
    hub.acts(Phase::Large, WEIGHTS, &[Act::Long]);
    let message = run("hf:org/model", &hub.settings(&cache)).message();
    assert!(message.contains("more than the file's"), "{message}");
}

#[test]
fn servers_without_ranges_send_it_whole() {
    let (hub, cache, text) = model();
    hub.acts(Phase::Meta, "*", &[Act::NoRange]);
    hub.acts(Phase::Get, "config.json", &[Act::NoRange]);
    hub.acts(Phase::Large, WEIGHTS, &[Act::Truncate(1000), Act::NoRange]);
    let run = run("hf:org/model", &hub.settings(&cache));
    assert_eq!(fs::read_to_string(run.path().join(WEIGHTS)).unwrap(), text);
}

#[test]
fn packed_and_piecewise_answers_are_read() {
    for act in [Act::Gzip, Act::Chunked] {
        let (hub, cache, text) = model();
        hub.acts(Phase::Meta, "config.json", std::slice::from_ref(&act));
        hub.acts(Phase::Get, "config.json", std::slice::from_ref(&act));
        hub.acts(Phase::Large, WEIGHTS, std::slice::from_ref(&act));
        let run = run("hf:org/model", &hub.settings(&cache));
        assert_eq!(fs::read_to_string(run.path().join(WEIGHTS)).unwrap(), text);
        assert_eq!(fs::read_to_string(run.path().join("config.json")).unwrap(), "{}");
    }
}

#[test]
fn a_part_that_is_given_out_for_the_file_is_no_reason_to_ask_for_ever() {
    let (hub, cache, text) = model();
    hub.acts(Phase::Large, WEIGHTS, &[Act::Truncate(40_000), Act::GzipOfPart]);
    let whole = run("hf:org/model", &hub.settings(&cache));
    assert_eq!(fs::read_to_string(whole.path().join(WEIGHTS)).unwrap(), text);
    // A server that breaks off at other places each time.
    let hub = Hub::with(&[("config.json", "{}"), (WEIGHTS, &"x".repeat(1_000_000))]);
    let cut = |length: usize| Act::Body("x".repeat(length));
    let acts = (0..12).map(|i| cut(600_000 + i % 2 * 100_000));
    hub.acts(Phase::Large, WEIGHTS, &[Act::Truncate(300_000)].into_iter().chain(acts).collect::<Vec<_>>());
    let cache = tempfile::tempdir().unwrap();
    let message = run("hf:org/model", &hub.settings(&cache)).message();
    assert!(message.contains("it ended after"), "{message}");
}

#[test]
fn an_empty_file_is_an_empty_file() {
    let hub = Hub::with(&[("config.json", "{}"), ("merges.txt", ""), (WEIGHTS, "x"), ("spiece.model", "")]);
    let cache = tempfile::tempdir().unwrap();
    let run = run("hf:org/model", &hub.settings(&cache));
    for name in ["merges.txt", "spiece.model"] {
        assert_eq!(fs::read(run.path().join(name)).unwrap(), b"", "{name}");
    }
}

#[test]
fn what_stands_still_is_tried_again_and_said() {
    let still = Duration::from_secs(3);
    for (phase, file, act) in [
        (Phase::Large, WEIGHTS, Act::Stall(10, still)),
        (Phase::Large, WEIGHTS, Act::StallHead(still)),
        (Phase::Meta, WEIGHTS, Act::StallHead(still)),
        (Phase::Api, "", Act::StallHead(still)),
        (Phase::Api, "", Act::Stall(10, still)),
    ] {
        let (hub, cache, text) = model();
        hub.acts(phase, file, &[act.clone(), Act::Well]);
        let started = Instant::now();
        let timeout = Duration::from_millis(400);
        let settings = HubSettings { etag_timeout: timeout, download_timeout: timeout, ..hub.settings(&cache) };
        let run = run("hf:org/model", &settings);
        assert_eq!(fs::read_to_string(run.path().join(WEIGHTS)).unwrap(), text, "{act:?}");
        assert!(run.noted("nothing came for 0.40 s; trying again in"), "{act:?}: {:?}", run.notes);
        assert!(started.elapsed() < still, "{act:?}");
    }
}

#[test]
fn one_that_stalls_after_every_handful_is_not_asked_for_ever() {
    let (hub, cache, text) = model();
    hub.acts(Phase::Large, WEIGHTS, &[Act::Stall(10, Duration::from_secs(3))]);
    let timeout = Duration::from_millis(300);
    let settings = HubSettings { download_timeout: timeout, ..hub.settings(&cache) };
    fs::create_dir_all(part(&cache, &text).parent().unwrap()).unwrap();
    let message = run("hf:org/model", &settings).message();
    assert!(message.contains("nothing came for 0.30 s"), "{message}");
    assert!(hub.asked().iter().filter(|asked| asked.phase == Phase::Large).count() <= 6);
    // What did come is kept.
    let kept = fs::metadata(part(&cache, &text)).unwrap().len();
    assert!((10..=60).contains(&kept), "{kept}");
}

#[test]
fn a_slow_file_is_no_standing_one() {
    let (hub, cache, text) = model();
    hub.acts(Phase::Large, WEIGHTS, &[Act::Slow(text.len() / 10, Duration::from_millis(100))]);
    let run = run("hf:org/model", &hub.settings(&cache));
    assert_eq!(fs::read_to_string(run.path().join(WEIGHTS)).unwrap(), text);
    assert_eq!(run.notes, [""; 0]);
}

#[test]
fn hubs_that_fail_are_asked_again_with_growing_pauses() {
    for (phase, file) in [(Phase::Api, ""), (Phase::Meta, "*"), (Phase::Get, "config.json"), (Phase::Large, WEIGHTS)] {
        for act in
            [Act::Status(500, ""), Act::Status(429, ""), Act::Status(408, ""), Act::Close, Act::Raw("garbage\r\n\r\n")]
        {
            let (hub, cache, text) = model();
            hub.acts(phase, file, &[act.clone(), act.clone(), Act::Well]);
            let run = run("hf:org/model", &hub.settings(&cache));
            assert_eq!(fs::read_to_string(run.path().join(WEIGHTS)).unwrap(), text, "{phase:?} {act:?}");
            assert!(run.noted("trying again in 0.01 s (2 of 5)"), "{phase:?} {act:?}: {:?}", run.notes);
        }
    }
    let (hub, cache, _) = model();
    hub.acts(Phase::Api, "", &[Act::Status(503, "")]);
    let run = run("hf:org/model", &hub.settings(&cache));
    assert_eq!(hub.asked().len(), 6);
    assert!(run.message().contains("found status 503; try again later"), "{}", run.message());
}

#[test]
fn the_hub_says_how_long_to_wait() {
    let (hub, cache, _) = model();
    hub.acts(Phase::Meta, "config.json", &[Act::Status(429, "Retry-After: 1"), Act::Well]);
    let started = Instant::now();
    let waited = run("hf:org/model", &hub.settings(&cache));
    assert!(waited.result.is_ok() && started.elapsed() >= Duration::from_secs(1));
    assert!(waited.noted("trying again in 1 s"), "{:?}", waited.notes);

    let (hub, cache, _) = model();
    hub.acts(Phase::Api, "", &[Act::Status(429, "RateLimit: \"api\";r=0;t=1"), Act::Well]);
    let started = Instant::now();
    assert!(run("hf:org/model", &hub.settings(&cache)).result.is_ok());
    assert!(started.elapsed() >= Duration::from_secs(1));

    // Nobody waits for a day.
    let (hub, cache, _) = model();
    hub.acts(Phase::Api, "", &[Act::Status(503, "Retry-After: 86400")]);
    let message = run("hf:org/model", &hub.settings(&cache)).message();
    assert!(message.contains("found status 503; it asks to wait 86400 s"), "{message}");
}

#[test]
fn refusals_are_no_reason_to_try_again() {
    for status in [401, 403, 404, 416] {
        let (hub, cache, _) = model();
        hub.acts(Phase::Large, WEIGHTS, &[Act::Status(status, "")]);
        let run = run("hf:org/model", &hub.settings(&cache));
        assert!(run.message().contains(&format!("found status {status}")), "{}", run.message());
        let large = hub.asked().iter().filter(|asked| asked.phase == Phase::Large).count();
        assert_eq!(large, 1, "{status}");
    }
}

#[test]
fn redirects_are_followed_ten_times_and_no_further() {
    let (hub, cache, text) = model();
    hub.acts(Phase::Large, WEIGHTS, &[Act::Redirect("model.safetensors?again=1"), Act::Well]);
    hub.acts(Phase::Meta, "config.json", &[Act::Redirect("SELF?again=1"), Act::Well]);
    let run = run("hf:org/model", &hub.settings(&cache));
    assert_eq!(fs::read_to_string(run.path().join(WEIGHTS)).unwrap(), text);

    // The first redirect to a large file comes from the hub itself.
    for (phase, file, asked) in [(Phase::Api, "", 11), (Phase::Meta, "config.json", 11), (Phase::Large, WEIGHTS, 10)] {
        let (hub, cache, _) = model();
        hub.acts(phase, file, &[Act::Redirect("SELF")]);
        let message = super::run("hf:org/model", &hub.settings(&cache)).message();
        assert!(message.contains("expected an answer within 10 redirects"), "{message}");
        assert_eq!(hub.asked().iter().filter(|one| one.phase == phase && one.file == file).count(), asked);
    }
    for (act, expected) in [
        (Act::NoLocation, "found status 302 without one"),
        (Act::Status(304, ""), "found status 304"),
        (Act::Redirect("ftp://127.0.0.1/x"), "expected a redirect to an address of http or https"),
    ] {
        for (phase, file) in [(Phase::Api, ""), (Phase::Meta, "config.json"), (Phase::Large, WEIGHTS)] {
            let (hub, cache, _) = model();
            hub.acts(phase, file, std::slice::from_ref(&act));
            let message = super::run("hf:org/model", &hub.settings(&cache)).message();
            assert!(message.contains(expected), "{phase:?}: {message}");
        }
    }
}

#[test]
fn weak_etags_are_etags_and_those_that_are_no_hash_are_said() {
    let (hub, cache, _) = model();
    hub.acts(Phase::Meta, "config.json", &[Act::Header("ETag", "W/\"abc\"")]);
    hub.acts(Phase::Get, "config.json", &[Act::Header("ETag", "\"abc\"")]);
    let run = run("hf:org/model", &hub.settings(&cache));
    assert_eq!(fs::read_to_string(run.path().join("config.json")).unwrap(), "{}");
    assert!(cache.path().join("hub/models--org--model/blobs/abc").is_file());
    assert!(run.noted("its ETag \"abc\" is no hash"), "{:?}", run.notes);
}

#[test]
fn a_page_in_the_place_of_an_answer_is_called_one() {
    for (phase, file) in
        [(Phase::Api, ""), (Phase::Meta, "config.json"), (Phase::Get, "config.json"), (Phase::Large, WEIGHTS)]
    {
        let (hub, cache, _) = model();
        hub.acts(phase, file, &[Act::Page]);
        let message = run("hf:org/model", &hub.settings(&cache)).message();
        assert!(message.contains("found a web page; a login page or a proxy"), "{phase:?}: {message}");
        assert!(message.contains(&hub.endpoint), "{message}");
    }
}

#[test]
fn a_list_of_four_hundred_thousand_files_is_read() {
    let (hub, cache, _) = model();
    hub.state.lock().unwrap().more_names =
        (0..400_000).map(|i| format!("onnx/part-of-something-{i:06}.onnx")).collect();
    assert!(run("hf:org/model", &hub.settings(&cache)).result.is_ok());
}
