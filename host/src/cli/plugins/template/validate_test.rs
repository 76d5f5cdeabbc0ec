    #[test]
    fn a_job_without_a_required_key_is_refused() {
        let host = Host::new().settings(json!({"required": ["model"]}));
        let judge = |config| host.run(|| Plugin::validate(&Job::new("1", config), &Context::submission()));
        assert!(judge(json!({})).expect("it can judge").refuses());
        assert!(!judge(json!({"model": "llama"})).expect("it can judge").refuses());
    }
