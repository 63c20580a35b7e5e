//! Where weights lie in their tensors, in every fixture.

use std::path::Path;

use mutandis_engine::Role;
use mutandis_engine::checkpoint::Checkpoint;

use crate::builder::values;

const ROLES: [Role; 9] = [
    Role::Embedding,
    Role::Query,
    Role::Key,
    Role::Value,
    Role::AttentionOut,
    Role::MlpGate,
    Role::MlpUp,
    Role::MlpOut,
    Role::Head,
];

#[test]
fn what_is_picked_is_the_weight_and_what_is_added_lands_in_it_alone() {
    let mut seen = 0;
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "gguf") && !path.join("config.json").exists() {
            continue;
        }
        seen += 1;
        let checkpoint = Checkpoint::open(&path).unwrap();
        for role in ROLES {
            let Some(layout) = checkpoint.layout(role, 1).unwrap() else { continue };
            let view = checkpoint.tensor(&layout.tensor).unwrap();
            let mut tensor = vec![0.0; view.shape.iter().product()];
            view.dtype.decode(view.bytes, &mut tensor);
            let weight = checkpoint.matrix(role, 1).unwrap().unwrap().to_f32();
            assert_eq!(layout.pick(&tensor), weight, "{}: {role:?}", path.display());

            let change = values(weight.len(), 3);
            let mut changed = tensor.clone();
            layout.add(&change, &mut changed);
            let sum: Vec<f32> = weight.iter().zip(&change).map(|(w, c)| w + c).collect();
            assert_eq!(layout.pick(&changed), sum, "{}: {role:?}", path.display());
            let moved = tensor.iter().zip(&changed).filter(|(a, b)| a != b).count();
            let expected = weight.iter().zip(&sum).filter(|(a, b)| a != b).count();
            assert_eq!(moved, expected, "{}: {role:?} moves its neighbours", path.display());
        }
        assert!(checkpoint.layout(Role::MlpOut, 1000).is_err());
        assert!(checkpoint.layout(Role::FinalNorm, 0).unwrap().is_none());
    }
    assert!(seen > 20, "{seen}");
}
