//! Generation on the tiny trained model, against transformers and against itself.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mutandis_engine::{
    Cache, Delta, Error, Generated, Generation, Kept, LogitRows, Model, Options, Overlay, Pass, Prompt, Role,
    Sampling, Sequence, StopReason, WeightId, next_token_distribution,
};
use safetensors::SafeTensors;

const FILE: &str = "stories260K.gguf";

/// Prompts of different lengths, BOS first.
const TEXTS: [&str; 5] =
    ["Once upon a time", "One", "Tim had a big red ball. He", "The cat", "Lily and Ben went to the"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

fn model_on(threads: usize) -> Model {
    Model::load(&fixture(FILE), Options { threads: Some(threads), ..Default::default() }).unwrap()
}

fn prompts(model: &Model) -> Vec<Vec<u32>> {
    TEXTS.iter().map(|text| model.tokenizer().unwrap().encode(text).unwrap().ids).collect()
}

fn single(model: &Model, generation: &Generation, tokens: &[u32], stream: u64) -> Generated {
    let prompt = Prompt { tokens, stream, ..Default::default() };
    generation.run(model, vec![prompt]).unwrap().pop().unwrap()
}

fn batch(model: &Model, generation: &Generation, tokens: &[Vec<u32>]) -> Vec<Generated> {
    let prompts =
        tokens.iter().zip(0..).map(|(tokens, stream)| Prompt { tokens, stream, ..Default::default() });
    generation.run(model, prompts.collect()).unwrap()
}

fn sampled(seed: u64) -> Generation {
    let sampling = Sampling { temperature: 1.0, top_k: Some(50), top_p: Some(0.95) };
    Generation { sampling, seed, max_tokens: 30, ..Default::default() }
}

#[test]
fn greedy_text_is_what_transformers_writes() {
    let model = model_on(2);
    let bytes = std::fs::read(fixture("golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let ids = |name: &str| -> Vec<u32> {
        let data = golden.tensor(&format!("stories260K.{name}")).unwrap().data().to_vec();
        data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
    };
    for i in 0..2 {
        let found = single(&model, &Generation::default(), &ids(&format!("ids.{i}")), 0);
        assert_eq!(found.tokens, ids(&format!("greedy.{i}")));
        assert_eq!(found.stop, StopReason::Length);
        let text = model
            .tokenizer()
            .unwrap()
            .decode_continuation(&found.tokens, mutandis_engine::tokenizer::Specials::Skip);
        assert_eq!(found.text, text);
    }
}

#[test]
fn a_sequence_does_not_know_its_neighbours_nor_the_threads() {
    let models = [1, 2, 4].map(model_on);
    for generation in [Generation::default(), sampled(7)] {
        let tokens = prompts(&models[0]);
        let alone: Vec<Generated> =
            tokens.iter().zip(0..).map(|(t, stream)| single(&models[0], &generation, t, stream)).collect();
        for model in &models {
            // Tokens, text and log-probabilities to the last bit.
            assert_eq!(batch(model, &generation, &tokens), alone);
        }
        // Nor how many run side by side while others wait.
        for together in [1, 2, tokens.len() - 1] {
            let few = Generation { together, ..generation.clone() };
            assert_eq!(batch(&models[1], &few, &tokens), alone);
        }
    }
}

#[test]
fn sequences_leave_the_batch_when_they_are_done() {
    let model = model_on(2);
    let tokens = prompts(&model);
    let greedy = Generation::default();
    let whole = batch(&model, &greedy, &tokens);
    // Each sequence's own eighth token ends it wherever it comes; most come at different times.
    let stop_ids = whole.iter().map(|g| g.tokens[7]).collect::<Vec<_>>();
    let generation = Generation { stop_ids: Some(stop_ids.clone()), ..greedy };
    let mut steps = vec![0; tokens.len()];
    let run = tokens.iter().map(|tokens| Prompt { tokens, ..Default::default() }).collect();
    let cut = generation
        .run_with(&model, run, |step| {
            assert_eq!(step.index, steps[step.sequence]);
            steps[step.sequence] += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    for ((cut, whole), steps) in cut.iter().zip(&whole).zip(&steps) {
        let end = whole.tokens.iter().position(|t| stop_ids.contains(t)).unwrap();
        assert_eq!((cut.tokens.as_slice(), cut.stop), (&whole.tokens[..end], StopReason::EndOfText));
        assert_eq!((cut.logprobs.as_slice(), *steps), (&whole.logprobs[..end], end + 1));
    }
    let lengths: std::collections::BTreeSet<_> = cut.iter().map(|g| g.tokens.len()).collect();
    assert!(lengths.len() > 1, "the test needs an uneven batch");
}

#[test]
fn a_seed_decides_and_a_stream_decides() {
    let model = model_on(2);
    let tokens = &prompts(&model)[0];
    let first = single(&model, &sampled(1), tokens, 0);
    assert_eq!(first, single(&model, &sampled(1), tokens, 0));
    assert_ne!(first.tokens, single(&model, &sampled(2), tokens, 0).tokens);
    assert_ne!(first.tokens, single(&model, &sampled(1), tokens, 1).tokens);
    let only_one = Sampling { temperature: 3.0, top_k: Some(1), top_p: None };
    let forced = Generation { sampling: only_one, ..Default::default() };
    assert_eq!(
        single(&model, &forced, tokens, 0).tokens,
        single(&model, &Generation::default(), tokens, 0).tokens
    );
}

#[test]
fn text_is_cut_before_a_stop_string_wherever_tokens_end() {
    let model = model_on(2);
    let tokens = &prompts(&model)[0];
    let whole = single(&model, &Generation::default(), tokens, 0);
    let characters: Vec<(usize, char)> = whole.text.char_indices().collect();
    let mut across = 0;
    for window in characters.windows(6).step_by(3) {
        let (start, end) = (window[0].0, window[5].0);
        let stop = whole.text[start..end].to_owned();
        let generation = Generation { stop: vec!["never there".into(), stop.clone()], ..Default::default() };
        let mut shown = String::new();
        let run = vec![Prompt { tokens, ..Default::default() }];
        let found = generation
            .run_with(&model, run, |step| {
                shown.push_str(step.text);
                ControlFlow::Continue(())
            })
            .unwrap()
            .remove(0);
        let at = whole.text.find(&stop).unwrap();
        assert_eq!((found.text.as_str(), found.stop), (&whole.text[..at], StopReason::StopString));
        assert_eq!(shown, found.text);
        assert_eq!(found.tokens, whole.tokens[..found.tokens.len()]);
        let pieces = found.tokens.iter().map(|&t| model.tokenizer().unwrap().piece(t));
        across += usize::from(pieces.into_iter().all(|piece| !piece.contains(&stop)));
    }
    assert!(across > 3, "no stop string lay across tokens");
}

#[test]
fn the_context_ends_a_text_and_a_longer_prompt_is_refused() {
    let model = model_on(2);
    let context = model.architecture().context;
    let many: Vec<u32> = (0..context + 1).map(|i| 3 + (i * 7 % 400) as u32).collect();
    let generation = Generation { stop_ids: Some(vec![]), max_tokens: 100, ..Default::default() };
    for (length, expected) in [(context - 3, 4), (context, 1)] {
        let found = single(&model, &generation, &many[..length], 0);
        assert_eq!((found.tokens.len(), found.stop), (expected, StopReason::Context));
    }
    let two = vec![many[..context].to_vec(), many[..20].to_vec()];
    let found = batch(&model, &generation, &two);
    assert_eq!((found[0].tokens.len(), found[1].tokens.len()), (1, 100));
    let error = generation.run(&model, vec![Prompt { tokens: &many, ..Default::default() }]).unwrap_err();
    assert!(error.to_string().contains(&format!("context of {context}")), "{error}");
    assert!(error.hint().is_some());
}

#[test]
fn settings_and_prompts_without_a_meaning_are_refused() {
    let model = model_on(1);
    let tokens = &prompts(&model)[0];
    let refused = |generation: Generation, tokens: &[u32]| -> Error {
        generation.run(&model, vec![Prompt { tokens, ..Default::default() }]).unwrap_err()
    };
    assert!(refused(Generation::default(), &[]).to_string().contains("empty"));
    assert!(refused(Generation::default(), &[1, 512]).to_string().contains("512"));
    let empty_stop = Generation { stop: vec![String::new()], ..Default::default() };
    assert!(refused(empty_stop, tokens).to_string().contains("stop string"));
    let mut hot = sampled(0);
    hot.sampling.temperature = f32::INFINITY;
    assert!(refused(hot, tokens).to_string().contains("temperature"));
    let nothing = Generation { max_tokens: 0, ..Default::default() };
    assert!(single(&model, &nothing, tokens, 0).tokens.is_empty());
    assert!(Generation::default().run(&model, vec![]).unwrap().is_empty());
}

#[test]
fn a_kept_prefix_and_a_kept_cache_change_nothing() {
    let model = model_on(2);
    let tokens = &prompts(&model)[4];
    let greedy = Generation { max_tokens: 20, ..Default::default() };
    let whole = single(&model, &greedy, tokens, 0);

    let mut cache = Cache::new(model.architecture());
    let (head, tail) = tokens.split_at(5);
    let sequence = Sequence { tokens: head, cache: Some(&mut cache), ..Default::default() };
    model.forward(Pass { sequences: vec![sequence], logits: LogitRows::None, ..Default::default() }).unwrap();
    let past = cache.past(head.len(), 0);
    let run = vec![
        Prompt { tokens: tail, past: Some(&past), ..Default::default() },
        Prompt { tokens, ..Default::default() },
        Prompt { tokens: tail, cache: Some(Kept::Lent(&mut cache)), ..Default::default() },
    ];
    let found = greedy.run(&model, run).unwrap();
    assert!(found.iter().all(|g| g.tokens == whole.tokens), "{found:?}, expected {whole:?}");
    assert_eq!(cache.len(), tokens.len() + whole.tokens.len() - 1);

    // The next turn goes on from the cache: all but the token chosen last is in it.
    let more =
        Prompt { tokens: &whole.tokens[19..], cache: Some(Kept::Lent(&mut cache)), ..Default::default() };
    let next = greedy.run(&model, vec![more]).unwrap().remove(0);
    let long = single(&model, &Generation { max_tokens: 40, ..Default::default() }, tokens, 0);
    assert_eq!(next.tokens, long.tokens[20..]);
}

#[test]
fn patches_reach_their_own_sequence_alone() {
    let model = model_on(2);
    let tokens = prompts(&model);
    let greedy = Generation::default();
    let plain = batch(&model, &greedy, &tokens);
    let [out, inn] = model.linear_shape(Role::MlpOut, 2).unwrap();
    let left: Vec<f32> = (0..out).map(|i| (i as f32 * 0.7).sin()).collect();
    let right: Vec<f32> = (0..inn).map(|i| (i as f32 * 1.3).cos()).collect();
    let mut overlay = Overlay::default();
    overlay.push(WeightId { layer: 2, role: Role::MlpOut }, Delta::low_rank(1, &left, &right).unwrap());
    let overlays = [&overlay];
    let run = tokens.iter().enumerate().map(|(i, tokens)| Prompt {
        tokens,
        overlays: if i == 1 { &overlays } else { &[] },
        ..Default::default()
    });
    let found = greedy.run(&model, run.collect()).unwrap();
    for (i, (found, plain)) in found.iter().zip(&plain).enumerate() {
        assert_eq!(found == plain, i != 1, "sequence {i}");
    }
    let patched = Prompt { tokens: &tokens[1], overlays: &overlays, ..Default::default() };
    assert_eq!(greedy.run(&model, vec![patched]).unwrap()[0], found[1]);

    let log_p = next_token_distribution(&model, &tokens[1], &overlays).unwrap();
    let first = found[1].tokens[0];
    assert_eq!(log_p[first as usize], found[1].logprobs[0]);
    assert_ne!(log_p, next_token_distribution(&model, &tokens[1], &[]).unwrap());
}

#[test]
fn probabilities_add_up_to_one_and_steps_show_them() {
    let model = model_on(2);
    let tokens = &prompts(&model)[2];
    let log_p = next_token_distribution(&model, tokens, &[]).unwrap();
    let total: f64 = log_p.iter().map(|&x| f64::from(x).exp()).sum();
    // 512 exponentials in f32, each within a few units in the last place.
    assert!((total - 1.0).abs() < 1e-5, "{total}");
    let mut first = None;
    let run = vec![Prompt { tokens, ..Default::default() }];
    let found = Generation::default()
        .run_with(&model, run, |step| {
            if step.index == 0 {
                let likeliest = step.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                first = Some((step.token, step.logprob, step.logits[step.token as usize] == likeliest));
            }
            if step.index == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap()
        .remove(0);
    assert_eq!((found.tokens.len(), found.stop), (5, StopReason::Caller));
    // Those that wait are stopped before they begin.
    let run = (0..3).map(|_| Prompt { tokens, ..Default::default() }).collect();
    let two = Generation { together: 2, ..Default::default() };
    let all = two.run_with(&model, run, |_| ControlFlow::Break(())).unwrap();
    let ends: Vec<_> = all.iter().map(|g| (g.tokens.len(), g.stop)).collect();
    assert_eq!(ends, [1, 1, 0].map(|n| (n, StopReason::Caller)));
    let (token, logprob, is_likeliest) = first.unwrap();
    assert!(is_likeliest);
    assert_eq!((token, logprob), (found.tokens[0], log_p[found.tokens[0] as usize]));
}

#[test]
fn a_text_ends_with_its_own_budget_or_when_it_is_whole() {
    let model = model_on(2);
    let tokens = prompts(&model);
    let greedy = Generation { max_tokens: 30, ..Default::default() };
    let alone: Vec<Generated> = tokens.iter().map(|t| single(&model, &greedy, t, 0)).collect();
    let budgets = [1, 30, 7, 99, 3];
    let asked = tokens.iter().zip(budgets).map(|(tokens, budget)| Prompt {
        tokens,
        budget: Some(budget),
        ..Default::default()
    });
    for ((found, alone), budget) in
        greedy.run(&model, asked.collect()).unwrap().iter().zip(&alone).zip(budgets)
    {
        assert_eq!(found.tokens, alone.tokens[..budget.min(30)]);
        assert_eq!(found.stop, StopReason::Length);
    }
    let whole = Generation { until: Some(|text| text.contains('.')), max_tokens: 60, ..Default::default() };
    for found in batch(&model, &whole, &tokens) {
        assert_eq!(found.stop, StopReason::StopString);
        assert_eq!(found.text.matches('.').count(), 1, "{}", found.text);
        let last = found.text.rsplit('.').next().unwrap();
        assert!(last.len() < 4, "{} goes on behind its end", found.text);
    }
}

#[test]
fn each_text_may_be_continued_in_its_own_way() {
    let model = model_on(2);
    let tokens = prompts(&model);
    let ways = [
        Generation { max_tokens: 12, ..Default::default() },
        sampled(3),
        Generation { until: Some(|text| text.contains('.')), max_tokens: 60, ..Default::default() },
        Generation { stop: vec!["the".into()], ..Default::default() },
    ];
    let asked = tokens.iter().zip(ways.iter().cycle()).zip(0..).map(|((tokens, how), stream)| Prompt {
        tokens,
        stream,
        how: Some(how),
        ..Default::default()
    });
    let found = Generation::default().run(&model, asked.collect()).unwrap();
    for (i, found) in found.iter().enumerate() {
        assert_eq!(*found, single(&model, &ways[i % ways.len()], &tokens[i], i as u64), "sequence {i}");
    }
    let empty = Generation { stop: vec![String::new()], ..Default::default() };
    let asked = Prompt { tokens: &tokens[0], how: Some(&empty), ..Default::default() };
    assert!(Generation::default().run(&model, vec![asked]).is_err());
}
