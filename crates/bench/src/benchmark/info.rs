//! What a cell is: all that its results depend on, in words and by content.

use std::collections::BTreeMap;
use std::path::Path;

use mutandis_edit::method::Family;
use mutandis_edit::{Context, Error, Result};
use mutandis_engine::Storage;

use super::choice::Chosen;
use super::{Benchmark, Named};
use crate::compat::in_context::Branch;
use crate::data::Form;
use crate::general::Suite;
use crate::judge::Judge;
use crate::plan::Order;
use crate::record::{Measures, PROTOCOL};
use crate::results::{CellInfo, DataInfo, SuiteInfo};
use crate::run::Cell;

impl Benchmark<'_> {
    /// What a cell is.
    pub(super) fn info(
        &self,
        order: &Order,
        Named { name, set: data }: &Named,
        Chosen { records, skipped, unasked }: Chosen,
        editor: Option<&Path>,
        cx: &Context<'_>,
    ) -> Result<CellInfo> {
        let Measures { references, strict, branch, .. } = self.measures;
        let mut sources = BTreeMap::new();
        let mut source = |name: &str, of: String| sources.insert(name.to_owned(), of);
        if let Some(path) = editor {
            let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
            source("editor", blake3::hash(&bytes).to_hex().to_string());
        }
        if let Some(references) = references.as_ref().filter(|_| *strict) {
            source("references", references.version.clone());
        }
        // Weights as they are stored are those in f32, to the last bit.
        if self.model.storage() == Storage::Bf16 {
            source("weights", "bf16".to_owned());
        }
        let mut protocols = protocols(self.measures, data.form, self.judge_of(data.form));
        let is_of_facts = !matches!(data.form, Form::ConvSent | Form::Sanitation);
        if self.measures.compat && is_of_facts && order.method.family == Family::Recognition {
            let how = match branch {
                Branch::Llama => "as of a model with `llama` in its name",
                Branch::Other => "as of a model without `llama` in its name",
            };
            // Of a sequence that is so on the way, too, which it was not once: those are other cells.
            let when = if order.mode.turn().is_some() { " at the end and on the way," } else { "" };
            let text = format!(
                "EasyEdit's icl_lm_eval and compute_icl_edit_quality in place of compat,{when} {how}"
            );
            protocols.insert("compat, in context".to_owned(), text);
        }
        let suite = |suite: &Suite| {
            let info = SuiteInfo {
                questions: suite.questions.len(),
                measure: suite.measure.name().to_owned(),
                version: suite.version.clone(),
            };
            (suite.name.to_owned(), info)
        };
        let mut settings = order.method.resolved(self.model, cx.recipe.as_ref(), &order.settings)?;
        if editor.is_some()
            && let Some(settings) = settings.as_object_mut()
        {
            // Told by its content; its path is of this machine.
            settings.remove("editor");
        }
        let (form, version) = (data.form, data.version.clone());
        Ok(CellInfo {
            method: order.method.id.to_owned(),
            settings,
            data: DataInfo { name: name.clone(), form, version, unasked, skipped },
            mode: order.mode,
            seed: order.seed,
            records: records.iter().map(|&i| data.records[i].number).collect(),
            parts: Cell::parts(order.mode, records.len()).len(),
            protocols,
            text: self.text.clone(),
            general: self.whole.general.iter().map(suite).collect(),
            sources,
        })
    }
}

/// What is measured of records of a form, in words: by compat and by strict.
fn scores_of(form: Form) -> [&'static str; 2] {
    match form {
        Form::ConvSent => [
            "opinions: EasyEdit's es as edit, likelihoods of answers of the wanted sentiment against the other's, and dd as \
             locality:kl, in nats, of the next record's topic; with its shared mask, unshifted labels and pads",
            "opinions: likelihoods of given answers, by every token of theirs and none else: edit as sentiment times topic; \
             locality:kl, in nats, of a topic half the file away; locality as the same free answers about it",
        ],
        Form::Sanitation => [
            "Sanitation: EasyEdit's ten tokens, greedily; edit as the target phrase within the text, locality as equal tokens at \
             equal places before and after, of ten retained questions",
            "Sanitation: greedy free generation to the end of the first line; edit as no old answer and a refusal; locality as \
             the same answer before and after; extraction strength and truth ratio by likelihoods of given answers",
        ],
        _ => [
            "facts: EasyEdit's token accuracy under teacher forcing of `prompt + \" \" + target`; first alias; \
             locality as agreement of likeliest tokens before and after; means over probes, kinds, records",
            "facts: greedy free generation to the end of the first sentence or line; exact match and F1 (:f1) against all \
             aliases, SQuAD's normalisation; locality as the same answer before and after, by that normalisation, and KL in \
             nats (:kl); by likelihoods of given answers: KL, efficacy, generalization, specificity, extraction strength, truth ratio",
        ],
    }
}

/// What is measured, in words.
fn protocols(measures: &Measures, form: Form, judge: Option<&dyn Judge>) -> BTreeMap<String, String> {
    let [compat, strict] = scores_of(form);
    let mut all = BTreeMap::from([
        ("version".to_owned(), PROTOCOL.to_string()),
        ("prompts".to_owned(), "plain, as the data set writes them; no chat template".to_owned()),
    ]);
    let mut say = |name: &str, is_measured: bool, text: &str| {
        if is_measured {
            all.insert(name.to_owned(), text.to_owned());
        }
    };
    say("compat", measures.compat, compat);
    let extra: Vec<&str> = measures.extra.iter().map(|extra| extra.about()).collect();
    say("compat, on request", measures.compat && !extra.is_empty(), &extra.join("; "));
    say("strict", measures.strict, strict);
    say(
        "fluency",
        measures.fluency,
        "weighted entropy of 2- and 3-grams of words, in bits; compat: top-5 sampling, 100 tokens with the prompt, \
         prompt scored too; strict: 100 new tokens, nucleus 0.9 of the top 50 (fluency) and greedy \
         (fluency:greedy), text alone, none of fewer than three words",
    );
    if let Some(judge) = judge {
        all.insert(
            "judge".to_owned(),
            format!("{}: whether a free answer says what a right one does", judge.name()),
        );
    }
    all
}
