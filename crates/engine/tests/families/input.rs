//! What a caller may get wrong: each an error that says so, and nothing else changes.

use std::sync::Arc;

use mutandis_engine::{
    Action, Cache, Delta, Error, Intervention, LogitRows, Model, Overlay, Pass, Read, Role, Sequence, Site,
    SiteKind, Start, Tape, Wants, WeightId,
};

use crate::support::{cache_of, fixtures, load, options, past_of, plain};

const IDS: [u32; 5] = [5, 17, 3, 44, 8];

fn message(error: &Error) -> String {
    format!("{error} {}", error.hint().unwrap_or_default())
}

fn refused(model: &Model, pass: Pass<'_>, expected: &str) {
    let error = model.forward(pass).map(|_| ()).expect_err(expected);
    assert!(message(&error).contains(expected), "`{}` does not say `{expected}`", message(&error));
}

fn pass<'a>() -> Pass<'a> {
    Pass { sequences: vec![plain(&IDS)], logits: LogitRows::Last, ..Pass::default() }
}

fn site(layer: usize, kind: SiteKind) -> Site {
    Site::new(layer, kind)
}

#[test]
fn sequences_that_do_not_fit_are_refused() {
    let model = load("gpt2");
    refused(
        &model,
        Pass { sequences: vec![plain(&IDS), plain(&[])], ..pass() },
        "sequence 1 of the batch is empty",
    );
    refused(&model, Pass { sequences: vec![plain(&[1, 98])], ..pass() }, "98");
    refused(&model, Pass { sequences: vec![plain(&[u32::MAX])], ..pass() }, "vocabulary");
    let long = vec![1; 33];
    refused(&model, Pass { sequences: vec![plain(&long)], ..pass() }, "33 tokens");
    // 30 before it, 5 more: with learned positions a row would be read beyond the table.
    let past = past_of(&model, &long[..20], 0);
    let mut cache = cache_of(&model, &long[..10]);
    let sequences = vec![Sequence { past: Some(&past), cache: Some(&mut cache), ..plain(&IDS) }];
    refused(&model, Pass { sequences, ..pass() }, "35 tokens");
    assert_eq!(cache.len(), 10, "nothing was appended");
    // No sequence at all is no error, and gives nothing.
    let none = model.forward(Pass { logits: LogitRows::All, record: true, ..Pass::default() }).unwrap();
    assert!(none.logits.is_empty());
    assert!(model.backward(&none.tape.unwrap(), &Wants::default()).is_ok());
    // The longest that fits is run.
    assert!(model.forward(Pass { sequences: vec![plain(&long[..32])], ..pass() }).is_ok());
}

#[test]
fn places_that_do_not_exist_are_refused() {
    let model = load("llama");
    let read = |layer, kind, rows| vec![Read { site: site(layer, kind), rows }];
    refused(&model, Pass { logits: LogitRows::Rows(vec![0, 5]), ..pass() }, "row 5");
    refused(&model, Pass { reads: read(3, SiteKind::Input, None), ..pass() }, "layer 3");
    refused(&model, Pass { reads: read(usize::MAX, SiteKind::Input, None), ..pass() }, "layer");
    refused(&model, Pass { reads: read(1, SiteKind::Input, Some(vec![9])), ..pass() }, "row 9");
    refused(&model, Pass { reads: read(0, SiteKind::FinalNorm, None), ..pass() }, "final norm");
    let change =
        |layer, rows, action| vec![Intervention { site: site(layer, SiteKind::Query), rows, action }];
    let width = model.architecture().query_width();
    refused(&model, Pass { interventions: change(7, vec![0], Action::Scale(2.0)), ..pass() }, "layer 7");
    refused(&model, Pass { interventions: change(0, vec![5], Action::Scale(2.0)), ..pass() }, "row 5");
    let short = Action::Add(vec![0.0; width - 1]);
    refused(&model, Pass { interventions: change(0, vec![0], short), ..pass() }, "expected 32");
    let long = Action::Replace(vec![0.0; width]);
    refused(&model, Pass { interventions: change(0, vec![0, 1], long), ..pass() }, "expected 64");
    let hidden = |layer, len| Start::Hidden { layer, rows: vec![0.5; len] };
    refused(&model, Pass { start: hidden(1, 5 * 32 + 1), ..pass() }, "hidden states");
    refused(&model, Pass { start: hidden(3, 5 * 32), ..pass() }, "hidden states");
    let below = Pass { start: hidden(2, 5 * 32), reads: read(1, SiteKind::MlpOut, None), ..pass() };
    refused(&model, below, "layers 2 to 2");
}

#[test]
fn caches_of_another_model_or_with_holes_are_refused() {
    let (model, other, narrow) = (load("llama"), load("gemma3"), load("qwen2"));
    for foreign in [&other, &narrow] {
        let past = past_of(foreign, &IDS, 0);
        refused(
            &model,
            Pass { sequences: vec![Sequence { past: Some(&past), ..plain(&IDS) }], ..pass() },
            "do not fit",
        );
        let mut cache = Cache::new(foreign.architecture());
        let sequences = vec![Sequence { cache: Some(&mut cache), ..plain(&IDS) }];
        refused(&model, Pass { sequences, ..pass() }, "do not fit");
    }
    // Kept from layer 2 on: no use to a pass that starts at layer 1.
    let past = past_of(&model, &IDS, 2);
    let run = |layer| {
        let start = Start::Hidden { layer, rows: vec![0.5; 5 * 32] };
        let sequences = vec![Sequence { past: Some(&past), ..plain(&IDS) }];
        model.forward(Pass { start, ..Pass { sequences, ..pass() } }).map(|o| o.logits.len())
    };
    assert_eq!(run(2).unwrap(), 104);
    assert!(message(&run(1).unwrap_err()).contains("layer 1 keeps"));
    // A cache filled from layer 1 upwards likewise.
    let mut cache = Cache::new(model.architecture());
    let start = Start::Hidden { layer: 1, rows: vec![0.5; 5 * 32] };
    let sequences = vec![Sequence { cache: Some(&mut cache), ..plain(&IDS) }];
    model.forward(Pass { start, sequences, ..Pass::default() }).unwrap();
    let sequences = vec![Sequence { cache: Some(&mut cache), ..plain(&IDS) }];
    refused(&model, Pass { sequences, ..pass() }, "layer 0 keeps");
    // More than there is gives what there is.
    assert_eq!(cache_of(&model, &IDS).past(9, 0).len(), 5);
}

#[test]
fn patches_that_do_not_fit_are_refused() {
    let model = load("gpt2");
    let id = |role, layer| WeightId { layer, role };
    let lay = |id: WeightId, delta: Delta| {
        let mut overlay = Overlay::default();
        overlay.push(id, delta);
        let overlays = [&overlay];
        let sequences = vec![Sequence { overlays: &overlays, ..plain(&IDS) }];
        model.forward(Pass { sequences, ..pass() }).map(|o| o.logits)
    };
    let dense = |out, inn| Delta::dense(out, inn, &vec![0.1; out * inn]).unwrap();
    assert!(lay(id(Role::MlpOut, 1), dense(24, 96)).is_ok());
    let error = lay(id(Role::MlpOut, 1), dense(96, 24)).unwrap_err();
    assert!(matches!(error, Error::Shape { .. }), "{error}");
    for (role, layer) in [
        (Role::MlpOut, 3),
        (Role::MlpGate, 0),
        (Role::Embedding, 0),
        (Role::AttentionNorm, 0),
        (Role::Head, 1),
    ] {
        assert!(matches!(lay(id(role, layer), dense(24, 96)), Err(Error::Input { .. })), "{role:?} {layer}");
    }
    assert!(Delta::dense(2, 2, &[0.0, f32::NAN, 0.0, 0.0]).is_err());
    assert!(Delta::dense(2, 2, &[0.0; 3]).is_err());
    assert!(Delta::dense(usize::MAX, 2, &[0.0; 3]).is_err());
    assert!(Delta::low_rank(1, &[1.0, f32::INFINITY], &[1.0]).is_err());
    assert!(Delta::low_rank(0, &[], &[]).is_err());
    assert!(Delta::low_rank(2, &[1.0; 3], &[1.0; 2]).is_err());
}

fn tape<'a>(model: &Model, interventions: Vec<Intervention>) -> Tape<'a> {
    model.forward(Pass { interventions, record: true, ..pass() }).unwrap().tape.unwrap()
}

#[test]
fn gradients_that_cannot_be_had_are_refused() {
    let model = load("gpt2");
    let whole = tape(&model, vec![]);
    let refused = |tape: &Tape<'_>, wants: Wants, expected: &str| {
        let error = model.backward(tape, &wants).map(|_| ()).expect_err(expected);
        assert!(message(&error).contains(expected), "`{}` does not say `{expected}`", message(&error));
    };
    let read = |layer, kind, rows| Read { site: site(layer, kind), rows };
    let logits = || vec![0.1; 98];
    let sites = |r| Wants { logits: logits(), sites: vec![r], ..Wants::default() };
    refused(&whole, Wants { logits: vec![0.1; 97], ..Wants::default() }, "97 numbers");
    refused(&whole, sites(read(3, SiteKind::Input, None)), "layer 3");
    refused(&whole, sites(read(0, SiteKind::FinalNorm, None)), "final norm");
    refused(&whole, sites(read(0, SiteKind::Input, Some(vec![5]))), "row 5");
    let seeds = |r, n| Wants { seeds: vec![(r, vec![0.1; n])], ..Wants::default() };
    refused(&whole, seeds(read(0, SiteKind::Input, None), 24), "expected 120");
    refused(&whole, seeds(read(0, SiteKind::Input, Some(vec![5])), 24), "row 5");
    refused(&whole, seeds(read(4, SiteKind::Input, Some(vec![0])), 24), "layer 4");
    let pairs =
        |role, layer| Wants { logits: logits(), pairs: vec![WeightId { layer, role }], ..Wants::default() };
    refused(&whole, pairs(Role::MlpOut, 3), "layer 3");
    refused(&whole, pairs(Role::MlpGate, 1), "mlp-gate");
    refused(&whole, pairs(Role::Embedding, 0), "`embedding`");
    refused(&whole, Wants { logits: vec![], ..pairs(Role::Head, 0) }, "none of the logits");

    // A function on the way has no gradient; above it there is one.
    let function = Intervention {
        site: site(1, SiteKind::MlpOut),
        rows: vec![4],
        action: Action::With(Arc::new(|row| row.reverse())),
    };
    let with = tape(&model, vec![function]);
    refused(&with, sites(read(0, SiteKind::Residual, None)), "no gradient");
    assert!(model.backward(&with, &sites(read(2, SiteKind::Input, None))).is_ok());

    // Layers below the start, and above the end, were not recorded.
    let part = Pass {
        sequences: vec![plain(&IDS)],
        start: Start::Hidden { layer: 1, rows: vec![0.5; 5 * 24] },
        reads: vec![read(1, SiteKind::Residual, None)],
        record: true,
        ..Pass::default()
    };
    let part = model.forward(part).unwrap().tape.unwrap();
    for layer in [0, 2] {
        refused(&part, seeds(read(layer, SiteKind::MlpOut, Some(vec![0])), 24), "layers 1 to 1");
    }
    assert!(model.backward(&part, &seeds(read(1, SiteKind::MlpOut, Some(vec![0])), 24)).is_ok());
}

/// A number that is not finite, in any tensor of any role, is found when the model is loaded.
#[test]
fn weights_that_are_not_finite_are_refused() {
    for name in ["gpt2", "gptj", "gemma3", "llama_bias", "llama"] {
        let from = fixtures().join(name);
        let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(from.join("config.json"), folder.path().join("config.json")).unwrap();
        let mut seen = 0;
        for (tensor, view) in file.tensors() {
            let nan: Vec<u8> = match view.dtype() {
                safetensors::Dtype::F32 => f32::NAN.to_le_bytes().to_vec(),
                // The same bits say "not a number" in f16 and in bf16.
                _ => 0x7FFFu16.to_le_bytes().to_vec(),
            };
            let at = view.data().as_ptr() as usize - bytes.as_ptr() as usize + view.data().len() - nan.len();
            assert!(at >= header);
            let mut damaged = bytes.clone();
            damaged[at..at + nan.len()].copy_from_slice(&nan);
            std::fs::write(folder.path().join("model.safetensors"), damaged).unwrap();
            let error = Model::load(folder.path(), options()).map(|_| ()).expect_err(&tensor);
            assert!(matches!(&error, Error::NotFinite { .. }), "{name} {tensor}: {error}");
            assert!(error.to_string().contains(&tensor), "`{error}` does not name `{tensor}`");
            seen += 1;
        }
        assert!(seen > 20, "{name}");
    }
}

#[test]
fn a_scale_that_is_not_finite_is_refused() {
    let model = load("llama_q8_0.gguf");
    let bytes = std::fs::read(fixtures().join("llama_q8_0.gguf")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for name in ["blk.2.ffn_down.weight", "blk.0.attn_q.weight", "token_embd.weight"] {
        let tensor = model.checkpoint().tensor(name).unwrap().bytes;
        let at = bytes.windows(tensor.len()).position(|w| w == tensor).unwrap();
        let mut damaged = bytes.clone();
        // The second block's scale, f16, becomes infinite.
        damaged[at + 34..at + 36].copy_from_slice(&0x7C00u16.to_le_bytes());
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, damaged).unwrap();
        let error = Model::load(&path, options()).map(|_| ()).expect_err(name);
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn weights_are_given_by_role_and_layer() {
    let model = load("gpt2");
    assert_eq!(model.weight(Role::MlpOut, 2).unwrap().len(), 24 * 96);
    assert_eq!(model.linear_shape(Role::Head, 0).unwrap(), [98, 24]);
    for (role, layer) in [(Role::MlpOut, 3), (Role::MlpGate, 0), (Role::AttentionNorm, 0)] {
        assert!(model.weight(role, layer).is_err(), "{role:?} {layer}");
        assert!(model.linear_shape(role, layer).is_err(), "{role:?} {layer}");
    }
}
