//! Parts of a pass equal the whole, a batch equals its sequences, a patch equals merged weights.

use std::collections::BTreeMap;

use mutandis_engine::architecture::Part;
use mutandis_engine::{
    Action, Cache, Intervention, LogitRows, Model, Overlay, Pass, Read, Role, Sequence, Site, SiteKind, Start,
};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::differences::KINDS;
use crate::support::{
    Change, FAMILIES, Golden, apart, assert_near, changes, fixtures, load, logits, options, overlay, past_of,
    plain, to_f64,
};

/// Sums over a text cut in two are added in another order: a few roundings of the largest logit.
const CUT: f64 = 3e-6;
/// The same over sixty tokens: the worst of five times as many logits.
const LONG: f64 = 6e-6;

fn read_all(model: &Model, ids: &[u32], sites: &[Site]) -> Vec<Vec<f32>> {
    let reads = sites.iter().map(|site| Read { site: *site, rows: None }).collect();
    model.forward(Pass { sequences: vec![plain(ids)], reads, ..Pass::default() }).unwrap().reads
}

#[test]
fn a_pass_from_hidden_states_after_a_past_gives_the_logits_of_the_whole() {
    let golden = Golden::open();
    for name in FAMILIES {
        let model = load(name);
        let a = model.architecture();
        let ids = golden.ids(name, 0);
        let whole = logits(&model, vec![plain(&ids)]);
        for layer in 0..a.layers {
            let hidden = read_all(&model, &ids, &[Site::new(layer, SiteKind::Input)]).remove(0);
            for cut in [0, 1, 5, ids.len() - 1] {
                let past = (cut > 0).then(|| past_of(&model, &ids[..cut], layer));
                let pass = Pass {
                    sequences: vec![Sequence { past: past.as_ref(), ..plain(&ids[cut..]) }],
                    start: Start::Hidden { layer, rows: hidden[cut * a.width..].to_vec() },
                    logits: LogitRows::All,
                    ..Pass::default()
                };
                let found = model.forward(pass).unwrap().logits;
                let expected = &whole[cut * a.vocabulary..];
                if cut == 0 {
                    assert_eq!(found, expected, "{name} from layer {layer}");
                }
                assert_near(&format!("{name} {layer} {cut}"), &found, &to_f64(expected), CUT);
            }
        }
    }
}

#[test]
fn what_the_head_reads_gives_the_logits_to_the_bit() {
    let golden = Golden::open();
    for name in FAMILIES {
        let model = load(name);
        let a = model.architecture();
        let ids = golden.ids(name, 0);
        let whole = logits(&model, vec![plain(&ids)]);
        let rows = read_all(&model, &ids, &[Site::new(a.layers - 1, SiteKind::FinalNorm)]).remove(0);
        for from in [0, ids.len() - 1] {
            let found = model.unembed(&rows[from * a.width..]).unwrap();
            assert_eq!(found, whole[from * a.vocabulary..], "{name} from row {from}");
        }
        assert!(model.unembed(&rows[1..]).unwrap_err().to_string().contains("no rows of"));
    }
}

#[test]
fn a_cache_fed_in_pieces_gives_the_logits_of_the_whole() {
    let golden = Golden::open();
    for name in FAMILIES {
        let model = load(name);
        let v = model.architecture().vocabulary;
        let ids = [golden.ids(name, 0), golden.ids(name, 1)];
        let past = past_of(&model, &ids[0][..2], 0);
        let mut caches = [Cache::new(model.architecture()), Cache::new(model.architecture())];
        let whole = ids.each_ref().map(|s| logits(&model, vec![plain(s)]));
        // Uneven pieces of both; the first sequence begins with a past of two tokens.
        let mut at = [2, 0];
        for pieces in [[3, 1], [1, 1], [4, 3], [3, 2]] {
            let [first, second] = &mut caches;
            let sequences = vec![
                Sequence {
                    past: Some(&past),
                    cache: Some(first),
                    ..plain(&ids[0][at[0]..at[0] + pieces[0]])
                },
                Sequence { cache: Some(second), ..plain(&ids[1][at[1]..at[1] + pieces[1]]) },
            ];
            let found = logits(&model, sequences);
            let expected: Vec<f32> =
                (0..2).flat_map(|i| whole[i][at[i] * v..(at[i] + pieces[i]) * v].to_vec()).collect();
            at = [at[0] + pieces[0], at[1] + pieces[1]];
            assert_near(&format!("{name} until {at:?}"), &found, &to_f64(&expected), CUT);
        }
        assert_eq!(at, [13, 7]);
        // Forgetting and feeding again changes nothing.
        let [first, _] = &mut caches;
        first.truncate(4);
        let again =
            logits(&model, vec![Sequence { past: Some(&past), cache: Some(first), ..plain(&ids[0][6..]) }]);
        assert_near(&format!("{name} again"), &again, &to_f64(&whole[0][6 * v..]), CUT);
    }
}

/// Longer than a tile of queries, than the windows, and than the lanes of a key's row.
#[test]
fn a_long_text_decoded_token_by_token_gives_the_logits_of_the_whole() {
    for name in FAMILIES {
        let model = load(name);
        let a = model.architecture();
        let len = a.context.min(61);
        let ids: Vec<u32> = (0..len).map(|i| (1 + i * i * 7 % (a.vocabulary - 1)) as u32).collect();
        let whole = logits(&model, vec![plain(&ids)]);
        let mut cache = Cache::new(a);
        let mut found = vec![];
        for id in &ids {
            let sequences = vec![Sequence { cache: Some(&mut cache), ..plain(std::slice::from_ref(id)) }];
            found.extend(logits(&model, sequences));
        }
        assert_eq!(cache.len(), len);
        assert_near(name, &found, &to_f64(&whole), LONG);
        let cut = len - 3;
        let past = cache.past(cut, 0);
        let end = logits(&model, vec![Sequence { past: Some(&past), ..plain(&ids[cut..]) }]);
        assert_near(name, &end, &to_f64(&whole[cut * a.vocabulary..]), LONG);
    }
}

#[test]
fn a_pass_that_stops_early_reads_what_a_whole_one_reads() {
    let golden = Golden::open();
    for name in FAMILIES {
        let model = load(name);
        let a = model.architecture();
        let ids = golden.ids(name, 1);
        let sites: Vec<Site> = (0..a.layers)
            .flat_map(|l| KINDS.map(|kind| Site::new(l, kind)))
            .filter(|s| s.kind != SiteKind::FinalNorm || s.layer == a.layers - 1)
            .collect();
        let together = read_all(&model, &ids, &sites);
        for (site, expected) in sites.iter().zip(&together) {
            assert_eq!(expected.len(), ids.len() * site.kind.width(a), "{name} {site:?}");
            assert_eq!(&read_all(&model, &ids, &[*site])[0], expected, "{name} {site:?}");
            let rows = vec![4, 0, 4];
            let picked: Vec<f32> = rows
                .iter()
                .flat_map(|r| expected[r * site.kind.width(a)..][..site.kind.width(a)].to_vec())
                .collect();
            let reads = vec![Read { site: *site, rows: Some(rows) }];
            let pass =
                Pass { sequences: vec![plain(&ids)], reads, logits: LogitRows::Last, ..Pass::default() };
            assert_eq!(model.forward(pass).unwrap().reads[0], picked, "{name} {site:?}");
        }
        // Above the highest read nothing runs: what would break there is never called.
        let broken = Intervention {
            site: Site::new(1, SiteKind::AttentionIn),
            rows: vec![0],
            action: Action::With(std::sync::Arc::new(|_| panic!("the pass did not stop"))),
        };
        let pass = Pass {
            sequences: vec![plain(&ids)],
            interventions: vec![broken],
            reads: vec![Read { site: Site::new(0, SiteKind::Residual), rows: None }],
            ..Pass::default()
        };
        assert!(!model.forward(pass).unwrap().reads[0].is_empty());
    }
}

#[test]
fn every_choice_of_logit_rows_gives_the_same_logits() {
    let golden = Golden::open();
    for name in FAMILIES {
        let model = load(name);
        let v = model.architecture().vocabulary;
        let ids = [golden.ids(name, 0), golden.ids(name, 1)];
        let run = |logits| {
            let sequences = ids.iter().map(|s| plain(s)).collect();
            model.forward(Pass { sequences, logits, ..Pass::default() }).unwrap().logits
        };
        let all = run(LogitRows::All);
        assert_eq!(all.len(), 20 * v);
        let rows =
            |rows: &[usize]| rows.iter().flat_map(|r| all[r * v..(r + 1) * v].to_vec()).collect::<Vec<_>>();
        assert_eq!(run(LogitRows::Last), rows(&[12, 19]), "{name}");
        assert_eq!(run(LogitRows::Rows(vec![15, 3, 3, 0])), rows(&[15, 3, 3, 0]), "{name}");
        assert!(run(LogitRows::None).is_empty());
    }
}

#[test]
fn patches_of_single_sequences_in_a_batch_equal_single_runs() {
    let golden = Golden::open();
    for name in FAMILIES {
        let model = load(name);
        let v = model.architecture().vocabulary;
        let ids = [golden.ids(name, 0), golden.ids(name, 1)];
        let (a, b) = (overlay(&changes(&model, &[0])), overlay(&changes(&model, &[1, 2])));
        let stacks: [&[&Overlay]; 5] = [&[&a], &[], &[&b], &[&b], &[&a, &b]];
        let sequences: Vec<Sequence<'_>> = stacks
            .iter()
            .enumerate()
            .map(|(i, overlays)| Sequence { overlays, ..plain(&ids[i % 2]) })
            .collect();
        let batch = logits(&model, sequences);
        let mut at = 0;
        for (i, overlays) in stacks.iter().enumerate() {
            let alone = logits(&model, vec![Sequence { overlays, ..plain(&ids[i % 2]) }]);
            assert_eq!(batch[at..at + alone.len()], alone, "{name}, sequence {i}");
            at += alone.len();
        }
        assert_eq!(at, batch.len());
        // The head's patch reaches rows picked out of order as well.
        let only_a = [&a];
        let pass = Pass {
            sequences: vec![plain(&ids[0]), Sequence { overlays: &only_a, ..plain(&ids[1]) }],
            logits: LogitRows::Rows(vec![14, 2, 13, 15]),
            ..Pass::default()
        };
        let patched = logits(&model, vec![Sequence { overlays: &[&a], ..plain(&ids[1]) }]);
        let bare = logits(&model, vec![plain(&ids[0])]);
        let row = |x: &[f32], r: usize| x[r * v..(r + 1) * v].to_vec();
        let expected = [row(&patched, 1), row(&bare, 2), row(&patched, 0), row(&patched, 2)].concat();
        assert_eq!(model.forward(pass).unwrap().logits, expected, "{name}");
    }
}

/// A copy of a fixture with the changed weights written into it, in F32.
fn merged(name: &str, model: &Model, changes: &[Change]) -> Model {
    let from = fixtures().join(name);
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = file
        .tensors()
        .into_iter()
        .map(|(n, t)| (n, (t.dtype(), t.shape().to_vec(), t.data().to_vec())))
        .collect();
    for change in changes {
        let mut weight = model.weight(change.id.role, change.id.layer).unwrap();
        for (w, d) in weight.iter_mut().zip(change.dense()) {
            *w += d;
        }
        let name = model.checkpoint().tensor_name(change.id.role, Part::Weight, change.id.layer).unwrap();
        let shape = model.linear_shape(change.id.role, change.id.layer).unwrap().to_vec();
        let old = tensors.insert(name, (Dtype::F32, shape.clone(), to_bytes(&weight))).unwrap();
        assert_eq!(old.1, shape);
    }
    let views = tensors
        .iter()
        .map(|(n, (dtype, shape, data))| (n.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap())
        .unwrap();
    std::fs::copy(from.join("config.json"), folder.path().join("config.json")).unwrap();
    Model::load(folder.path(), options()).unwrap()
}

fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

#[test]
fn a_patch_equals_merged_weights() {
    let golden = Golden::open();
    // Their projections are stored apart, so that one tensor is one weight.
    for name in ["llama", "qwen2", "gptj", "gemma3"] {
        let model = load(name);
        let ids = golden.ids(name, 0);
        let mut changes = changes(&model, &[0, 2]);
        // A tied head cannot be merged without its embedding.
        changes.retain(|c| c.id.role != Role::Head || !model.architecture().tied);
        let patch = overlay(&changes);
        let expected = logits(&merged(name, &model, &changes), vec![plain(&ids)]);
        let found = logits(&model, vec![Sequence { overlays: &[&patch], ..plain(&ids) }]);
        let bare = logits(&model, vec![plain(&ids)]);
        let (far, _) = apart(&found, &to_f64(&bare));
        assert!(far > 0.1, "{name}: the patch does nothing");
        assert_near(name, &found, &to_f64(&expected), 1e-5);
        assert_eq!(logits(&model, vec![plain(&ids)]), bare, "{name}: a patch leaves nothing behind");
    }
}
