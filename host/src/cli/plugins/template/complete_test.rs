    #[test]
    fn an_end_is_told_and_tried_again_when_the_receiver_is_down() {
        use taxiway_plugin::End;
        let outcome = Outcome {
            end: End::Completed,
            will_retry: false,
            exit_code: Some(0),
            signal: None,
            failure: None,
            started_at_ms: Some(0),
            finished_at_ms: 1,
            log_tail: String::new(),
            details: json!({}),
        };
        let delivery = Delivery { id: "d".to_owned(), attempt: 1 };
        let tell = |status| {
            let host = Host::new()
                .settings(json!({"url": "https://example.org/jobs"}))
                .http(move |_| Ok(http::Response { status, ..Default::default() }));
            host.run(|| Plugin::completed(&Job::new("1", json!({})), &outcome, &delivery))
        };
        assert_eq!(tell(204), Ok(()));
        assert!(tell(500).is_err_and(|error| error.retry_after.is_some()));
    }
