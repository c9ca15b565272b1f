#![no_main]

#[path = "../seeding.rs"]
mod seeding;
#[path = "../targets/request.rs"]
mod target;

libfuzzer_sys::fuzz_target!(init: seeding::write("request"), |bytes: &[u8]| target::run(bytes));
