    #[test]
    fn only_missing_keys_are_filled_in() {
        let host = Host::new().settings(json!({"defaults": {"epochs": 3, "lr": 0.1}}));
        let rewrite = |config| host.run(|| Plugin::rewrite(&Job::new("1", config), &Context::submission()));
        let change = rewrite(json!({"epochs": 5})).expect("it can rewrite").expect("something is missing");
        assert_eq!(change.new_config(), Some(&json!({"epochs": 5, "lr": 0.1})));
        assert_eq!(rewrite(json!({"epochs": 5, "lr": 0.1})), Ok(None));
    }
