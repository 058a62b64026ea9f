BEGIN TRANSACTION;
CREATE TABLE answer (
	evaluation INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	task TEXT NOT NULL, 
	"index" INTEGER NOT NULL, 
	item INTEGER NOT NULL, 
	cluster TEXT, 
	metrics TEXT, 
	extracted TEXT, 
	responses TEXT, 
	CONSTRAINT pk_answer PRIMARY KEY (evaluation, position), 
	CONSTRAINT fk_answer_item FOREIGN KEY(item) REFERENCES item (seq), 
	CONSTRAINT fk_answer_evaluation FOREIGN KEY(evaluation) REFERENCES evaluation (seq) ON DELETE CASCADE, 
	CONSTRAINT uq_answer_evaluation UNIQUE (evaluation, task, "index")
);
INSERT INTO "answer" VALUES(1,0,'arc_easy',5,1,'g1','{"acc,none":0.0,"loss,none":Infinity}','{"none":"ad800 0"}','[0,1]');
INSERT INTO "answer" VALUES(1,1,'arc_easy',4,2,'g0','{"acc,none":1.0,"loss,none":NaN}','{"none":"ad800 1"}','[2,3]');
INSERT INTO "answer" VALUES(1,2,'arc_easy',3,3,'g1','{"acc,none":0.0,"loss,none":NaN}','{"none":"ad800 2"}','[4,5]');
INSERT INTO "answer" VALUES(1,3,'arc_easy',2,4,'g0','{"acc,none":1.0,"loss,none":NaN}','{"none":"ad800 3"}','[6,7]');
INSERT INTO "answer" VALUES(1,4,'arc_easy',1,5,'g1',NULL,NULL,NULL);
INSERT INTO "answer" VALUES(1,5,'arc_easy',0,6,'g0',NULL,NULL,NULL);
INSERT INTO "answer" VALUES(1,6,'gsm8k',0,7,NULL,'{"acc,none":0.0,"loss,none":NaN}','{"none":"ad800 4"}','[8,9]');
INSERT INTO "answer" VALUES(1,7,'gsm8k',1,8,NULL,'{"acc,none":1.0,"loss,none":NaN}','{"none":"ad800 5"}','[10,11]');
INSERT INTO "answer" VALUES(2,0,'arc_easy',5,9,'g1',NULL,NULL,NULL);
INSERT INTO "answer" VALUES(2,1,'arc_easy',4,2,'g0',NULL,NULL,NULL);
INSERT INTO "answer" VALUES(2,2,'arc_easy',3,3,'g1',NULL,NULL,NULL);
INSERT INTO "answer" VALUES(2,3,'arc_easy',2,4,'g0',NULL,NULL,NULL);
INSERT INTO "answer" VALUES(2,4,'arc_easy',1,5,'g1',NULL,NULL,NULL);
INSERT INTO "answer" VALUES(2,5,'arc_easy',0,6,'g0',NULL,NULL,NULL);
CREATE TABLE cell (
	study INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	status TEXT NOT NULL, 
	ref TEXT, 
	error TEXT, 
	CONSTRAINT pk_cell PRIMARY KEY (study, position), 
	CONSTRAINT fk_cell_study FOREIGN KEY(study) REFERENCES study (seq) ON DELETE CASCADE, 
	CONSTRAINT uq_cell_study UNIQUE (study, name)
);
INSERT INTO "cell" VALUES(1,0,'evaluate base','done','e-full',NULL);
INSERT INTO "cell" VALUES(1,1,'tune careful','failed',NULL,'out of memory');
CREATE TABLE comparison (
	seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	id TEXT NOT NULL, 
	base TEXT NOT NULL, 
	tuned TEXT NOT NULL, 
	value TEXT NOT NULL, 
	CONSTRAINT uq_comparison_id UNIQUE (id)
);
INSERT INTO "comparison" VALUES(1,'c-full','e-other','e-full','{"id":"c-full","base":"e-other","tuned":"e-full","base_name":"base","tuned_name":"full","lineage":true,"rows":[{"task":"arc_easy","metric":"acc","filter":"none","n":6,"base":0.5,"tuned":0.3333333333333333,"delta":-0.16666666666666666,"low":-0.5,"high":0.25,"margin":0.02,"primary":true,"kind":"binary","p":0.04,"p_adjusted":0.08,"p_lower":null,"p_higher":null,"p_within":null,"p_exact":null,"p_mid":null,"gained":0,"lost":1,"verdict":"lower","told":"forgot","note":"","items_needed":null,"at_floor":false,"target":false,"stopped_of":6,"p_no_drop":null,"n_total":null,"group":"","q":null,"details":["Tango -0.5 to 0.25"]},{"task":"arc_easy","metric":"acc_norm","filter":"none","n":6,"base":0.5,"tuned":0.3333333333333333,"delta":-0.16666666666666666,"low":-0.5,"high":0.25,"margin":0.02,"primary":false,"kind":"real","p":null,"p_adjusted":0.08,"p_lower":null,"p_higher":null,"p_within":null,"p_exact":null,"p_mid":null,"gained":0,"lost":1,"verdict":null,"told":"forgot","note":"","items_needed":null,"at_floor":false,"target":false,"stopped_of":6,"p_no_drop":null,"n_total":570,"group":"arc","q":0.25,"details":["Tango -0.5 to 0.25"]}],"differences":[{"field":"dtype","left":"float32","right":"bfloat16","blocking":false}],"forced":true,"held_out":{"n":20,"before":2.5,"after":1.25,"low":-1.5,"high":-1.0},"relation":"tuned","origin":"base","common":true,"forms":[{"task":"gsm8k","base":{"n":6,"no_answer":1,"cut_off":0,"no_end":2,"other_form":0,"empty":0},"tuned":{"n":6,"no_answer":1,"cut_off":0,"no_end":2,"other_form":0,"empty":0},"lost":1,"lost_by_form":1,"low":0.2,"high":1.0,"cause":"format"}]}');
INSERT INTO "comparison" VALUES(2,'c-old','e-other','e-full','{"id":"c-old","base":"e-other","tuned":"e-full","base_name":"base","tuned_name":"full","lineage":true,"rows":[{"task":"arc_easy","metric":"acc","filter":"none","n":6,"base":0.5,"tuned":0.3333333333333333,"delta":-0.16666666666666666,"low":-0.5,"high":0.25,"margin":0.02,"primary":true,"kind":"binary","p":0.04,"p_adjusted":0.08,"p_lower":null,"p_higher":null,"p_within":null,"p_exact":null,"p_mid":null,"gained":0,"lost":1,"verdict":"lower","told":"forgot","note":"","items_needed":null,"at_floor":false,"target":false},{"task":"arc_easy","metric":"acc_norm","filter":"none","n":6,"base":0.5,"tuned":0.3333333333333333,"delta":-0.16666666666666666,"low":-0.5,"high":0.25,"margin":0.02,"primary":false,"kind":"real","p":null,"p_adjusted":0.08,"p_lower":null,"p_higher":null,"p_within":null,"p_exact":null,"p_mid":null,"gained":0,"lost":1,"verdict":null,"told":"forgot","note":"","items_needed":null,"at_floor":false,"target":false}],"differences":[{"field":"dtype","left":"float32","right":"bfloat16","blocking":false}],"forced":true,"held_out":{"n":20,"before":2.5,"after":1.25,"low":-1.5,"high":-1.0},"of a later version":[1]}');
CREATE TABLE evaluation (
	seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	status TEXT NOT NULL, 
	tuning TEXT, 
	model INTEGER NOT NULL, 
	value TEXT NOT NULL, 
	CONSTRAINT fk_evaluation_model FOREIGN KEY(model) REFERENCES model (seq), 
	CONSTRAINT uq_evaluation_id UNIQUE (id)
);
INSERT INTO "evaluation" VALUES(1,'e-full','full','done','t-full',1,'{"device":"cpu","dtype":"float32","engine":"packed","engine_note":"packed: two real rows agree","warnings":["a task was slow","ad800b"],"provenance":{"command":"aftertune eval x","started":"2026-01-01T00:00:00+00:00","finished":null,"seconds":1.5,"versions":{"torch":"2.13"},"hardware":{"cpus":2,"ram":1000000000.0,"gpu":null},"git":null,"dirty":false},"early":{"against":"e-other","seed":7,"margins":{"arc_easy":0.02},"units":[{"name":"arc_easy","key":"acc,none","tasks":["arc_easy"],"items":6,"batch":2,"order":"oooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooo","used":4,"verdict":"lower"}],"min_items":0,"max_width":0.1}}');
INSERT INTO "evaluation" VALUES(2,'e-open','open','running',NULL,1,'{"device":"cpu","dtype":"float32","engine":"packed","engine_note":"","warnings":[],"provenance":{"command":"aftertune eval x","started":"2026-01-01","finished":null,"seconds":null,"versions":{},"hardware":{},"git":null,"dirty":null},"early":null}');
CREATE TABLE item (
	seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	hash TEXT NOT NULL, 
	content TEXT NOT NULL, 
	doc TEXT NOT NULL, 
	CONSTRAINT uq_item_hash UNIQUE (hash, content)
);
INSERT INTO "item" VALUES(1,'7056e5725912cd0ae7bf50c1a4ff03ae4a99d8172240332a09d6129ce2cf7ecc','3600f462c038c2b2466410022a26c11efa8436c8979ff8a250c7a243941ad531','{"question":"arc_easy 5?","choices":["a","b"],"aftertune:asked":{"question":"Which?","choices":["a","b"],"gold":[1],"reference":""}}');
INSERT INTO "item" VALUES(2,'5f21b8bfe7bb7e42da749f35272ba90377e2e57b39fa14b3b3422f673ba1e40a','6cb42473590a78d018b2a52302d2f54c0e7cb955f6650fe1723d45876372411a','{"question":"arc_easy 4?","choices":["a","b"]}');
INSERT INTO "item" VALUES(3,'730964101f5a8871f866411327090364f56b2d3d5e85569923b2c02fe5e29325','3ea6e6c41b75d6f2d231daf2f91bab3611b8fde5a6d44619f10d8247c49a3c75','{"question":"arc_easy 3?","choices":["a","b"]}');
INSERT INTO "item" VALUES(4,'32dea6dad19fc3978d4c522670cad58b55d57c7cc01e93771788ca162cb2ec57','16a89a5fbf338f19a575b0dfe7aaebb7f57a1a87ac0e684d4178a80879261635','{"question":"arc_easy 2?","choices":["a","b"]}');
INSERT INTO "item" VALUES(5,'ab5aaa8379973a563b1741399c11044a57c77ec37cbd259ee52b249b096d3316','9689219401e01976f67a09e3495382274c2d9325a1b1e7219022646ccb755f91','{"question":"arc_easy 1?","choices":["a","b"]}');
INSERT INTO "item" VALUES(6,'60c9d34f55f006e332fe68d9ef384bdc87c659aa8e86bcf4f2726832955de9f2','8a6813cb50da6ac48558c144d62a786f64a699397ae49579227fb24e3cc648f5','{"question":"arc_easy 0?","choices":["a","b"]}');
INSERT INTO "item" VALUES(7,'hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh','49b55c5ae466f9316e3f2078ff17b5a033b7898d7c15985baa91987f39f24ab6','{"n":[1,1.0,null,true,{"deep":[[]]}],"ad800":"\u0000\u001a","big":1180591620717411303424,"inf":"inf","aftertune:asked":{"question":"","choices":[],"gold":[],"reference":"42"}}');
INSERT INTO "item" VALUES(8,'hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh','ff7a1315299260617fe404199e54e6d976a0b03e47da54fccec073c2fa48ff5c','{"n":1e-07}');
INSERT INTO "item" VALUES(9,'7056e5725912cd0ae7bf50c1a4ff03ae4a99d8172240332a09d6129ce2cf7ecc','554e5dbdaacfcc8e18dd5525a790f1c062f4dd7a12104a291466941dbe851508','{"question":"arc_easy 5?","choices":["a","b"]}');
CREATE TABLE lease (
	evaluation INTEGER NOT NULL, 
	pid INTEGER NOT NULL, 
	host TEXT NOT NULL, 
	boot TEXT NOT NULL, 
	started TEXT NOT NULL, 
	heartbeat DOUBLE NOT NULL, 
	CONSTRAINT pk_lease PRIMARY KEY (evaluation), 
	CONSTRAINT fk_lease_evaluation FOREIGN KEY(evaluation) REFERENCES evaluation (seq) ON DELETE CASCADE
);
CREATE TABLE model (
	seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	"key" TEXT NOT NULL, 
	fingerprint TEXT NOT NULL, 
	source TEXT NOT NULL, 
	value TEXT NOT NULL, 
	CONSTRAINT uq_model_key UNIQUE ("key")
);
INSERT INTO "model" VALUES(1,'898e16fd7758c61096a1fa0ce0f2cfef12126fc56899f0a421bf1a939c9aefcc','29d8b0378088054c95c05ec98e14ace1ea53c1f0b8665d4eaee83f3f3b433661','package:llm/model.gguf','{"source":"package:llm/model.gguf","weights":"wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww","config":"cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc","tokenizer":"tttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttt","adapter":null,"adapter_source":null,"architecture":"LlamaForCausalLM","parameters":134515008,"revision":null,"trust_remote_code":false,"quantization":null}');
CREATE TABLE reported_score (
	seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	source TEXT NOT NULL, 
	model TEXT NOT NULL, 
	task TEXT NOT NULL, 
	metric TEXT NOT NULL, 
	value DOUBLE, 
	stderr DOUBLE, 
	n INTEGER, 
	extra TEXT NOT NULL
);
INSERT INTO "reported_score" VALUES(1,'record.md','A','gsm8k','exact_match',0.25,NULL,1319,'{"facts":{"dtype":"float16"}}');
INSERT INTO "reported_score" VALUES(2,'record.md','','','',NULL,NULL,NULL,'{"kind":"observation","lead":"Size","text":"larger","remark":true}');
CREATE TABLE response (
	evaluation INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	batch INTEGER NOT NULL, 
	logprob DOUBLE, 
	greedy BOOLEAN, 
	text TEXT, 
	tokens INTEGER, 
	finish TEXT, 
	truncated INTEGER NOT NULL, 
	CONSTRAINT pk_response PRIMARY KEY (evaluation, position), 
	CONSTRAINT fk_response_evaluation FOREIGN KEY(evaluation) REFERENCES evaluation (seq) ON DELETE CASCADE
);
INSERT INTO "response" VALUES(1,0,0,-1.42857142857142849212e-01,1,NULL,NULL,NULL,0);
INSERT INTO "response" VALUES(1,1,0,-2.85714285714285698425e-01,0,NULL,NULL,NULL,1);
INSERT INTO "response" VALUES(1,2,0,-4.28571428571428547638e-01,0,NULL,NULL,NULL,0);
INSERT INTO "response" VALUES(1,3,0,-5.7142857142857139685e-01,1,NULL,NULL,NULL,1);
INSERT INTO "response" VALUES(1,4,0,-7.14285714285714301574e-01,0,NULL,NULL,NULL,0);
INSERT INTO "response" VALUES(1,5,0,-8.57142857142857095276e-01,0,NULL,NULL,NULL,1);
INSERT INTO "response" VALUES(1,6,0,-1.0,1,NULL,NULL,NULL,0);
INSERT INTO "response" VALUES(1,7,0,-1.1428571428571427937e+00,0,NULL,NULL,NULL,1);
INSERT INTO "response" VALUES(1,8,0,-1.28571428571428580944e+00,0,NULL,NULL,NULL,0);
INSERT INTO "response" VALUES(1,9,0,-1.42857142857142860314e+00,1,NULL,NULL,NULL,1);
INSERT INTO "response" VALUES(1,10,1,-1.57142857142857139685e+00,0,NULL,NULL,NULL,0);
INSERT INTO "response" VALUES(1,11,1,-9e999,0,NULL,NULL,NULL,0);
INSERT INTO "response" VALUES(1,12,1,NULL,NULL,'so 420000d800',9,'length',3);
INSERT INTO "response" VALUES(1,13,1,NULL,NULL,'so 420000d800',9,'eos',3);
INSERT INTO "response" VALUES(1,14,1,3.00000000000000044408e-01,1,NULL,NULL,NULL,0);
INSERT INTO "response" VALUES(1,15,1,NULL,NULL,NULL,NULL,NULL,0);
INSERT INTO "response" VALUES(2,0,0,-1.5,1,NULL,NULL,NULL,0);
CREATE TABLE schedule (
	evaluation INTEGER NOT NULL, 
	value TEXT NOT NULL, 
	CONSTRAINT pk_schedule PRIMARY KEY (evaluation), 
	CONSTRAINT fk_schedule_evaluation FOREIGN KEY(evaluation) REFERENCES evaluation (seq) ON DELETE CASCADE
);
INSERT INTO "schedule" VALUES(1,'{"budget":{"tokens":4096,"backend":0.5},"halvings":[[1,2],[]],"note":"é𝄞\u0000"}');
INSERT INTO "schedule" VALUES(2,'{"budget":{"tokens":512}}');
CREATE TABLE score (
	evaluation INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	task TEXT NOT NULL, 
	metric TEXT NOT NULL, 
	filter TEXT NOT NULL, 
	value DOUBLE NOT NULL, 
	stderr DOUBLE, 
	n INTEGER NOT NULL, 
	higher_is_better BOOLEAN NOT NULL, 
	"primary" BOOLEAN NOT NULL, 
	"group" BOOLEAN NOT NULL, 
	CONSTRAINT pk_score PRIMARY KEY (evaluation, position), 
	CONSTRAINT fk_score_evaluation FOREIGN KEY(evaluation) REFERENCES evaluation (seq) ON DELETE CASCADE
);
INSERT INTO "score" VALUES(1,0,'arc_easy','acc','none',0.5,3.00000000000000044408e-01,6,1,0,0);
INSERT INTO "score" VALUES(1,1,'arc_easy','acc_norm','none',3.33333333333333314829e-01,NULL,6,1,1,0);
INSERT INTO "score" VALUES(1,2,'gsm8k','perplexity','none',9e999,9e999,2,0,0,1);
CREATE TABLE step (
	tuning INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	value TEXT NOT NULL, 
	CONSTRAINT pk_step PRIMARY KEY (tuning, number), 
	CONSTRAINT fk_step_tuning FOREIGN KEY(tuning) REFERENCES tuning (seq) ON DELETE CASCADE
);
INSERT INTO "step" VALUES(1,0,1,'{"step":1.0,"loss":2.5}');
INSERT INTO "step" VALUES(1,1,2,'{"step":2,"loss":Infinity,"tokens":512}');
INSERT INTO "step" VALUES(2,0,10,'{"step":10,"loss":1.9}');
CREATE TABLE study (
	seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	name TEXT NOT NULL, 
	hash TEXT NOT NULL, 
	yaml TEXT NOT NULL, 
	CONSTRAINT uq_study_name UNIQUE (name)
);
INSERT INTO "study" VALUES(1,'orders','ssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssss','study: orders
');
CREATE TABLE task (
	evaluation INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	value TEXT NOT NULL, 
	CONSTRAINT pk_task PRIMARY KEY (evaluation, position), 
	CONSTRAINT fk_task_evaluation FOREIGN KEY(evaluation) REFERENCES evaluation (seq) ON DELETE CASCADE
);
INSERT INTO "task" VALUES(1,0,'arc_easy','{"task":"arc_easy","version":"1.0","output_type":"multiple_choice","num_fewshot":0,"n":6,"n_total":570,"split":"validation","data":"pack:olmo","items":"e7f6c011776e8db7cd330b54174fd76f7d0216b612387a5ffcfb81e6f0919683","prompts":"fe94b827f0455bee6f4a6a265286f827f18748ede569565ee827058085bad146","primary":"acc_norm,none","higher_is_better":{"acc":true,"acc_norm":true},"limit":null,"sample":null,"sample_seed":null,"chat_template":null,"system_instruction":null,"fewshot_as_multiturn":false,"generation":{"until":["\n","ad800b"],"temperature":0},"chance":0.25,"cluster":null,"groups":["arc"],"target":false,"used":4,"draw_seed":3}');
INSERT INTO "task" VALUES(1,1,'gsm8k','{"task":"gsm8k","version":"1.0","output_type":"multiple_choice","num_fewshot":0,"n":2,"n_total":570,"split":"validation","data":"pack:olmo","items":"d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35","prompts":"038966de9f6b9a901b20b4c6ca8b2a46009feebe031babc842d43690c0bc222b","primary":"acc_norm,none","higher_is_better":{"acc":true,"acc_norm":true},"limit":null,"sample":null,"sample_seed":null,"chat_template":null,"system_instruction":null,"fewshot_as_multiturn":false,"generation":{},"chance":null,"cluster":"subject","groups":[],"target":true,"used":null,"draw_seed":null}');
INSERT INTO "task" VALUES(2,0,'arc_easy','{"task":"arc_easy","version":"1.0","output_type":"multiple_choice","num_fewshot":0,"n":6,"n_total":570,"split":"validation","data":"pack:olmo","items":"e7f6c011776e8db7cd330b54174fd76f7d0216b612387a5ffcfb81e6f0919683","prompts":"fe94b827f0455bee6f4a6a265286f827f18748ede569565ee827058085bad146","primary":"acc_norm,none","higher_is_better":{"acc":true,"acc_norm":true},"limit":null,"sample":null,"sample_seed":null,"chat_template":null,"system_instruction":null,"fewshot_as_multiturn":false,"generation":{},"chance":0.25,"cluster":null,"groups":[],"target":false,"used":null,"draw_seed":null}');
CREATE TABLE tuning (
	seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	status TEXT NOT NULL, 
	result TEXT, 
	model INTEGER NOT NULL, 
	value TEXT NOT NULL, 
	CONSTRAINT fk_tuning_model FOREIGN KEY(model) REFERENCES model (seq), 
	CONSTRAINT uq_tuning_id UNIQUE (id)
);
INSERT INTO "tuning" VALUES(1,'t-full','careful','done','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff',1,'{"method":"lora","data":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","data_source":"orders.jsonl","examples":600,"seed":0,"settings":{"lora":{"r":16,"targets":["q_proj"],"dropout":0.0},"learning_rate":0.0002,"watch":null},"output":"out","trainable_parameters":460800,"held_out":{"n":20,"before":2.5,"after":1.25,"low":-1.5,"high":-1.0},"counts":{"data":{"rows":600,"empty":0},"training":{}},"overlap":[{"task":"arc_easy","n":6,"exact":[0,3],"ngram":[3],"found":[{"item":0,"words":"a b"}]}],"notes":["stopped early"],"provenance":{"command":"aftertune tune x","started":"2026-01-01","finished":"2026-01-02","seconds":null,"versions":{},"hardware":{},"git":"abc","dirty":null},"merged":"gggggggggggggggggggggggggggggggggggggggggggggggggggggggggggggggg","cost":{"memory":3000000000,"seconds":12.5,"estimated_memory":2000000000},"watch":[{"step":10,"task":"arc_easy","metric":"acc","n":6,"base":0.5,"tuned":0.25,"delta":-0.25,"low":-0.5,"high":0.0,"verdict":"undecided"}]}');
INSERT INTO "tuning" VALUES(2,'t-old','old','running',NULL,1,'{"method":"lora","data":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","data_source":"orders.jsonl","examples":600,"seed":0,"settings":{"lora":{"r":16},"learning_rate":0.0002},"output":"out","trainable_parameters":null,"notes":[],"provenance":null,"of a later version":[1]}');
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('model',1);
INSERT INTO "sqlite_sequence" VALUES('evaluation',2);
INSERT INTO "sqlite_sequence" VALUES('item',9);
INSERT INTO "sqlite_sequence" VALUES('tuning',2);
INSERT INTO "sqlite_sequence" VALUES('comparison',2);
INSERT INTO "sqlite_sequence" VALUES('reported_score',2);
INSERT INTO "sqlite_sequence" VALUES('study',1);
COMMIT;
CREATE INDEX ix_answer_item ON answer (item);
CREATE INDEX ix_comparison_base ON comparison (base);
CREATE INDEX ix_comparison_tuned ON comparison (tuned);
CREATE INDEX ix_evaluation_model ON evaluation (model);
CREATE INDEX ix_evaluation_name ON evaluation (name);
CREATE INDEX ix_evaluation_tuning ON evaluation (tuning);
CREATE INDEX ix_model_fingerprint ON model (fingerprint);
CREATE INDEX ix_reported_score_source ON reported_score (source);
CREATE INDEX ix_response_batch ON response (evaluation, batch);
CREATE INDEX ix_score_task ON score (task);
CREATE INDEX ix_task_name ON task (name);
CREATE INDEX ix_tuning_model ON tuning (model);
CREATE INDEX ix_tuning_name ON tuning (name);
CREATE INDEX ix_tuning_result ON tuning (result);
