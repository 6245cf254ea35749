-- A run that was killed amid its second tier: version 0.1, revision 0004, SQLite. See test_upgrade.py.
BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0004');
CREATE TABLE audit (
	run_id INTEGER NOT NULL, 
	candidate_id INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	drawn BOOLEAN NOT NULL, 
	found BOOLEAN, 
	CONSTRAINT pk_audit PRIMARY KEY (run_id, candidate_id), 
	CONSTRAINT fk_audit_candidate_id_candidate FOREIGN KEY(candidate_id) REFERENCES candidate (id), 
	CONSTRAINT fk_audit_run_id_run FOREIGN KEY(run_id) REFERENCES run (id)
)
 WITHOUT ROWID

;
CREATE TABLE bad_row (
	id INTEGER NOT NULL, 
	run_id INTEGER NOT NULL, 
	source TEXT NOT NULL, 
	line INTEGER NOT NULL, 
	reason TEXT NOT NULL, 
	raw TEXT NOT NULL, ingest INTEGER DEFAULT 0 NOT NULL, 
	CONSTRAINT pk_bad_row PRIMARY KEY (id), 
	CONSTRAINT fk_bad_row_run_id_run FOREIGN KEY(run_id) REFERENCES run (id)
);
CREATE TABLE batch (
	id INTEGER NOT NULL, 
	run_id INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	judge_id INTEGER NOT NULL, 
	price_id INTEGER, 
	mark TEXT NOT NULL, 
	server TEXT NOT NULL, 
	key_fingerprint TEXT NOT NULL, 
	remote_id TEXT, 
	input_file TEXT, 
	output_file TEXT, 
	error_file TEXT, 
	state VARCHAR(16) NOT NULL, 
	remote_state TEXT, 
	reason TEXT, 
	lines INTEGER NOT NULL, 
	tokens INTEGER NOT NULL, 
	answered INTEGER NOT NULL, 
	unanswered INTEGER NOT NULL, 
	created_at DATETIME NOT NULL, 
	submitted_at DATETIME, 
	ended_at DATETIME, 
	collected_at DATETIME, 
	CONSTRAINT pk_batch PRIMARY KEY (id), 
	CONSTRAINT fk_batch_run_id_run FOREIGN KEY(run_id) REFERENCES run (id), 
	CONSTRAINT fk_batch_judge_id_judge FOREIGN KEY(judge_id) REFERENCES judge (id), 
	CONSTRAINT uq_batch_mark UNIQUE (mark)
);
CREATE TABLE batch_line (
	batch_id INTEGER NOT NULL, 
	text_id INTEGER NOT NULL, 
	CONSTRAINT pk_batch_line PRIMARY KEY (batch_id, text_id), 
	CONSTRAINT fk_batch_line_batch_id_batch FOREIGN KEY(batch_id) REFERENCES batch (id), 
	CONSTRAINT fk_batch_line_text_id_text FOREIGN KEY(text_id) REFERENCES text (id)
)
 WITHOUT ROWID

;
CREATE TABLE calibrated (
	digest BLOB NOT NULL, 
	candidate_id INTEGER NOT NULL, 
	CONSTRAINT pk_calibrated PRIMARY KEY (digest, candidate_id), 
	CONSTRAINT fk_calibrated_candidate_id_candidate FOREIGN KEY(candidate_id) REFERENCES candidate (id)
)
 WITHOUT ROWID

;
CREATE TABLE candidate (
	id INTEGER NOT NULL, 
	screen TEXT NOT NULL, 
	"key" TEXT NOT NULL, 
	digest BLOB NOT NULL, 
	text_id INTEGER, 
	problem TEXT, 
	CONSTRAINT pk_candidate PRIMARY KEY (id), 
	CONSTRAINT ck_candidate_text_or_problem CHECK ((text_id IS NULL) <> (problem IS NULL)), 
	CONSTRAINT fk_candidate_text_id_text FOREIGN KEY(text_id) REFERENCES text (id), 
	CONSTRAINT uq_candidate_screen_key_digest UNIQUE (screen, "key", digest)
);
INSERT INTO "candidate" VALUES(1,'before','k000',X'B42D13C1C6C8FCD767BD07E7B5E602FE',1,NULL);
INSERT INTO "candidate" VALUES(2,'before','k001',X'4F17A5891901D9AED412B604AD9B1967',2,NULL);
INSERT INTO "candidate" VALUES(3,'before','k002',X'88870CE4A1980B7538A6C5876D9A259C',3,NULL);
INSERT INTO "candidate" VALUES(4,'before','k003',X'FD89324F62D9B55847321B4FEC816A29',4,NULL);
INSERT INTO "candidate" VALUES(5,'before','k004',X'83F88442D50118C18AC73D86AD4A4269',5,NULL);
INSERT INTO "candidate" VALUES(6,'before','k005',X'3812DFA358A96165A9D83CDFBC4BE7CC',6,NULL);
INSERT INTO "candidate" VALUES(7,'before','k006',X'99CEA2228870088D33C3BE9839E398CA',7,NULL);
INSERT INTO "candidate" VALUES(8,'before','k007',X'B433D15D6CA5E663E0CECC6BB5B0DE05',8,NULL);
INSERT INTO "candidate" VALUES(9,'before','k008',X'827392D472ABFABFB3C00C3DB75F16E7',9,NULL);
INSERT INTO "candidate" VALUES(10,'before','k009',X'784C17655B6B1FB8E53B8EAAA3D6A7D6',10,NULL);
INSERT INTO "candidate" VALUES(11,'before','k010',X'61F947ADA97D89C090ED237923B2DB69',11,NULL);
INSERT INTO "candidate" VALUES(12,'before','k011',X'3FC9CDA670F69C6191F05BD67E0B06D8',12,NULL);
INSERT INTO "candidate" VALUES(13,'before','k012',X'491E5E837634C593290B88C1D9408E16',13,NULL);
INSERT INTO "candidate" VALUES(14,'before','k013',X'62E860D7F785823AD442B73C65B1C1F0',14,NULL);
INSERT INTO "candidate" VALUES(15,'before','k014',X'D9530CB9C5436D38E2A5556D4B739806',15,NULL);
INSERT INTO "candidate" VALUES(16,'before','k015',X'E988845E5E5122BCE690A8469E3BACD4',16,NULL);
INSERT INTO "candidate" VALUES(17,'before','k016',X'1EC10908339D5ED63BC4957BB072D27F',17,NULL);
INSERT INTO "candidate" VALUES(18,'before','k017',X'73E7F22AFD97BB91872DD57B5539197E',18,NULL);
INSERT INTO "candidate" VALUES(19,'before','k018',X'E1A753D7332558939F8EB9A69CBBA4BD',19,NULL);
INSERT INTO "candidate" VALUES(20,'before','k019',X'3BD040790927EC71CBE58912175DFB38',20,NULL);
INSERT INTO "candidate" VALUES(21,'before','k020',X'438813EFC5F697916E946D714A5289A3',21,NULL);
INSERT INTO "candidate" VALUES(22,'before','k021',X'5AEA0362A74312BAA52DD269C03B7B67',22,NULL);
INSERT INTO "candidate" VALUES(23,'before','k022',X'01CF43C93AE0ACA7EFD6BD9BB99BF9E1',23,NULL);
INSERT INTO "candidate" VALUES(24,'before','k023',X'21F8A3BC440A6B0F1BE1397D43767D5A',24,NULL);
INSERT INTO "candidate" VALUES(25,'before','k024',X'B768E1238AA51D0957CE05F5023249F3',25,NULL);
INSERT INTO "candidate" VALUES(26,'before','k025',X'98FF1B88439E9661D84DB149A815A7B3',26,NULL);
INSERT INTO "candidate" VALUES(27,'before','k026',X'0C657AEB9538FFA3BD047BB0D4819E24',27,NULL);
INSERT INTO "candidate" VALUES(28,'before','k027',X'90102D367E0EF08B2C06B5A453B5B7A6',28,NULL);
INSERT INTO "candidate" VALUES(29,'before','k028',X'46B79B27C2D2A3D4A71C1277B7157768',29,NULL);
INSERT INTO "candidate" VALUES(30,'before','k029',X'7D44C7248B4D387FA7D9669022D58094',30,NULL);
INSERT INTO "candidate" VALUES(31,'before','k030',X'3684305A9011D629B7ACC6213E3D1039',31,NULL);
INSERT INTO "candidate" VALUES(32,'before','k031',X'80EBCFCF41B5D1C0B5389DD79EA0129C',32,NULL);
INSERT INTO "candidate" VALUES(33,'before','k032',X'133CD383E98D7DF269BDA561EED2FC9C',33,NULL);
INSERT INTO "candidate" VALUES(34,'before','k033',X'1E66FF9E3155A1049CC48DE701F2B34D',34,NULL);
INSERT INTO "candidate" VALUES(35,'before','k034',X'3224C862BCBDAC59ED732E81968F4655',35,NULL);
INSERT INTO "candidate" VALUES(36,'before','k035',X'D6164DFF0790DE2036C3A7E04B9C754C',36,NULL);
INSERT INTO "candidate" VALUES(37,'before','k036',X'1AD8D526A75D598FC6604EE037DD463B',37,NULL);
INSERT INTO "candidate" VALUES(38,'before','k037',X'4703BBDB3BA1BC83D8B3E5788C85F75E',38,NULL);
INSERT INTO "candidate" VALUES(39,'before','k038',X'2207BC3608B2B3D1E948624ABC8AA2A8',39,NULL);
INSERT INTO "candidate" VALUES(40,'before','k039',X'6A7967D52B59BDEEA8C13D4629031E11',40,NULL);
CREATE TABLE candidate_fields (
	candidate_id INTEGER NOT NULL, 
	fields TEXT NOT NULL, 
	CONSTRAINT pk_candidate_fields PRIMARY KEY (candidate_id), 
	CONSTRAINT fk_candidate_fields_candidate_id_candidate FOREIGN KEY(candidate_id) REFERENCES candidate (id)
);
INSERT INTO "candidate_fields" VALUES(1,'{"id":"k000","text":"text 0"}');
INSERT INTO "candidate_fields" VALUES(2,'{"id":"k001","text":"text 1"}');
INSERT INTO "candidate_fields" VALUES(3,'{"id":"k002","text":"text 2"}');
INSERT INTO "candidate_fields" VALUES(4,'{"id":"k003","text":"text 3"}');
INSERT INTO "candidate_fields" VALUES(5,'{"id":"k004","text":"text 4"}');
INSERT INTO "candidate_fields" VALUES(6,'{"id":"k005","text":"text 5"}');
INSERT INTO "candidate_fields" VALUES(7,'{"id":"k006","text":"text 6"}');
INSERT INTO "candidate_fields" VALUES(8,'{"id":"k007","text":"text 7"}');
INSERT INTO "candidate_fields" VALUES(9,'{"id":"k008","text":"text 8"}');
INSERT INTO "candidate_fields" VALUES(10,'{"id":"k009","text":"text 9"}');
INSERT INTO "candidate_fields" VALUES(11,'{"id":"k010","text":"text 10"}');
INSERT INTO "candidate_fields" VALUES(12,'{"id":"k011","text":"text 11"}');
INSERT INTO "candidate_fields" VALUES(13,'{"id":"k012","text":"text 12"}');
INSERT INTO "candidate_fields" VALUES(14,'{"id":"k013","text":"text 13"}');
INSERT INTO "candidate_fields" VALUES(15,'{"id":"k014","text":"text 14"}');
INSERT INTO "candidate_fields" VALUES(16,'{"id":"k015","text":"text 15"}');
INSERT INTO "candidate_fields" VALUES(17,'{"id":"k016","text":"text 16"}');
INSERT INTO "candidate_fields" VALUES(18,'{"id":"k017","text":"text 17"}');
INSERT INTO "candidate_fields" VALUES(19,'{"id":"k018","text":"text 18"}');
INSERT INTO "candidate_fields" VALUES(20,'{"id":"k019","text":"text 19"}');
INSERT INTO "candidate_fields" VALUES(21,'{"id":"k020","text":"text 20"}');
INSERT INTO "candidate_fields" VALUES(22,'{"id":"k021","text":"text 21"}');
INSERT INTO "candidate_fields" VALUES(23,'{"id":"k022","text":"text 22"}');
INSERT INTO "candidate_fields" VALUES(24,'{"id":"k023","text":"text 23"}');
INSERT INTO "candidate_fields" VALUES(25,'{"id":"k024","text":"text 24"}');
INSERT INTO "candidate_fields" VALUES(26,'{"id":"k025","text":"text 25"}');
INSERT INTO "candidate_fields" VALUES(27,'{"id":"k026","text":"text 26"}');
INSERT INTO "candidate_fields" VALUES(28,'{"id":"k027","text":"text 27"}');
INSERT INTO "candidate_fields" VALUES(29,'{"id":"k028","text":"text 28"}');
INSERT INTO "candidate_fields" VALUES(30,'{"id":"k029","text":"text 29"}');
INSERT INTO "candidate_fields" VALUES(31,'{"id":"k030","text":"text 30"}');
INSERT INTO "candidate_fields" VALUES(32,'{"id":"k031","text":"text 31"}');
INSERT INTO "candidate_fields" VALUES(33,'{"id":"k032","text":"text 32"}');
INSERT INTO "candidate_fields" VALUES(34,'{"id":"k033","text":"text 33"}');
INSERT INTO "candidate_fields" VALUES(35,'{"id":"k034","text":"text 34"}');
INSERT INTO "candidate_fields" VALUES(36,'{"id":"k035","text":"text 35"}');
INSERT INTO "candidate_fields" VALUES(37,'{"id":"k036","text":"text 36"}');
INSERT INTO "candidate_fields" VALUES(38,'{"id":"k037","text":"text 37"}');
INSERT INTO "candidate_fields" VALUES(39,'{"id":"k038","text":"text 38"}');
INSERT INTO "candidate_fields" VALUES(40,'{"id":"k039","text":"text 39"}');
CREATE TABLE judge (
	id INTEGER NOT NULL, 
	digest TEXT NOT NULL, 
	description TEXT NOT NULL, 
	CONSTRAINT pk_judge PRIMARY KEY (id), 
	CONSTRAINT uq_judge_digest UNIQUE (digest)
);
INSERT INTO "judge" VALUES(1,'3ae209a4353a8d81a9c3b6fd9398c3c8cda2dac9a855a0872ce6158859ff9dd7','{"backend":"python","options":{"paid":"small.paid"},"path":"own:Own","rubric":"any","version":"1"}');
INSERT INTO "judge" VALUES(2,'7c517692d9b795bd50e6cd316c761f83b4b8badd01df7e5273dadd311fc9e352','{"backend":"python","options":{"paid":"large.paid","seconds":0.25},"path":"own:Own","rubric":"any","version":"1"}');
CREATE TABLE judgement (
	judge_id INTEGER NOT NULL, 
	text_id INTEGER NOT NULL, 
	run_id INTEGER NOT NULL, 
	score DOUBLE, 
	reading TEXT, 
	mass DOUBLE, 
	prompt_tokens INTEGER NOT NULL, 
	cached_tokens INTEGER NOT NULL, 
	completion_tokens INTEGER NOT NULL, 
	seconds DOUBLE NOT NULL, 
	error TEXT, 
	failed BOOLEAN NOT NULL, 
	note TEXT, 
	judged_at DATETIME NOT NULL, reasoning_tokens INTEGER DEFAULT 0 NOT NULL, price_id INTEGER, 
	CONSTRAINT pk_judgement PRIMARY KEY (judge_id, text_id), 
	CONSTRAINT ck_judgement_score_is_probability CHECK (score BETWEEN 0 AND 1), 
	CONSTRAINT fk_judgement_judge_id_judge FOREIGN KEY(judge_id) REFERENCES judge (id), 
	CONSTRAINT fk_judgement_run_id_run FOREIGN KEY(run_id) REFERENCES run (id), 
	CONSTRAINT fk_judgement_text_id_text FOREIGN KEY(text_id) REFERENCES text (id)
)
 WITHOUT ROWID

;
INSERT INTO "judgement" VALUES(1,1,1,0.6,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,2,1,0.7,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,3,1,0.8,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,4,1,0.9,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,5,1,0.0,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,6,1,0.1,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,7,1,0.2,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,8,1,0.3,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,9,1,0.4,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,10,1,0.5,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,11,1,0.5,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,12,1,0.6,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,13,1,0.7,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,14,1,0.8,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,15,1,0.9,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,16,1,0.0,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,17,1,0.1,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,18,1,0.2,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,19,1,0.3,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,20,1,0.4,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,21,1,0.6,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,22,1,0.7,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,23,1,0.8,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,24,1,0.9,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,25,1,0.0,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,26,1,0.1,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,27,1,0.2,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,28,1,0.3,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,29,1,0.4,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,30,1,0.5,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,31,1,0.7,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,32,1,0.8,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,33,1,0.9,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,34,1,0.0,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,35,1,0.1,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,36,1,0.2,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,37,1,0.3,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,38,1,0.4,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,39,1,0.5,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(1,40,1,0.6,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:29.161023',0,NULL);
INSERT INTO "judgement" VALUES(2,1,1,0.6,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:30.801292',0,NULL);
INSERT INTO "judgement" VALUES(2,2,1,0.7,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:31.068322',0,NULL);
INSERT INTO "judgement" VALUES(2,3,1,0.8,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:31.336636',0,NULL);
INSERT INTO "judgement" VALUES(2,4,1,0.9,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:31.589056',0,NULL);
INSERT INTO "judgement" VALUES(2,10,1,0.5,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:31.840074',0,NULL);
INSERT INTO "judgement" VALUES(2,11,1,0.5,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:32.090628',0,NULL);
INSERT INTO "judgement" VALUES(2,12,1,0.6,'yes',NULL,0,0,0,0.0,NULL,0,NULL,'2026-11-26 02:50:32.340872',0,NULL);
CREATE TABLE label (
	rubric TEXT NOT NULL, 
	text_id INTEGER NOT NULL, 
	source VARCHAR(16) NOT NULL, 
	reviewer TEXT NOT NULL, 
	answer BOOLEAN, 
	told_at DATETIME NOT NULL, 
	CONSTRAINT pk_label PRIMARY KEY (rubric, text_id, source, reviewer), 
	CONSTRAINT fk_label_text_id_text FOREIGN KEY(text_id) REFERENCES text (id)
)
 WITHOUT ROWID

;
CREATE TABLE policy (
	id INTEGER NOT NULL, 
	reject_below DOUBLE, 
	accept_above DOUBLE, 
	top_count INTEGER, 
	top_share DOUBLE, 
	created_at DATETIME NOT NULL, 
	author TEXT, 
	reason TEXT, budget BOOLEAN DEFAULT 0 NOT NULL, run_id INTEGER, position INTEGER, follows TEXT, certificate TEXT, 
	CONSTRAINT pk_policy PRIMARY KEY (id)
);
INSERT INTO "policy" VALUES(1,0.5,NULL,NULL,NULL,'2026-11-26 02:50:27.951121',NULL,NULL,0,1,0,NULL,NULL);
INSERT INTO "policy" VALUES(2,NULL,0.6,NULL,NULL,'2026-11-26 02:50:27.962830',NULL,NULL,0,1,1,NULL,NULL);
CREATE TABLE price (
	id INTEGER NOT NULL, 
	input DOUBLE NOT NULL, 
	cached_input DOUBLE NOT NULL, 
	output DOUBLE NOT NULL, 
	hour DOUBLE NOT NULL, 
	source TEXT NOT NULL, 
	CONSTRAINT pk_price PRIMARY KEY (id)
);
CREATE TABLE run (
	id INTEGER NOT NULL, 
	"key" TEXT NOT NULL, 
	screen TEXT NOT NULL, 
	config TEXT NOT NULL, 
	config_hash TEXT NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	reason TEXT, 
	created_at DATETIME NOT NULL, 
	started_at DATETIME, 
	finished_at DATETIME, 
	seconds DOUBLE NOT NULL, 
	ingests INTEGER NOT NULL, 
	rows_read INTEGER NOT NULL, 
	rows_duplicate INTEGER NOT NULL, 
	prefect_flow_run TEXT, 
	lock_owner TEXT, 
	lock_until DATETIME, 
	CONSTRAINT pk_run PRIMARY KEY (id), 
	CONSTRAINT uq_run_key UNIQUE ("key")
);
INSERT INTO "run" VALUES(1,'monday','before','{"candidates": {"from": "@FOLDER@/in.jsonl", "key": "id"}, "rubric": "any", "screen": "before", "tiers": [{"backend": "python", "folder": "@FOLDER@", "name": "small", "options": {"paid": "small.paid"}, "path": "own:Own", "policy": {"budget": false, "reject_below": 0.5}}, {"backend": "python", "folder": "@FOLDER@", "name": "large", "options": {"paid": "large.paid", "seconds": 0.25}, "path": "own:Own", "policy": {"accept_above": 0.6, "budget": false}}]}','@HASH@','running',NULL,'2026-11-26 02:50:27.949978','2026-11-26 02:50:27.949983',NULL,0.0,1,40,0,NULL,'elsewhere 1 2.5 boot pid:[1]','2026-11-26 00:00:00.000000');
CREATE TABLE run_tier (
	run_id INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	judge_id INTEGER, 
	policy_id INTEGER, 
	last BOOLEAN NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	reason TEXT, 
	seconds DOUBLE NOT NULL, 
	load_seconds DOUBLE, 
	prompt_rate DOUBLE, 
	decode_rate DOUBLE, 
	started_at DATETIME, 
	finished_at DATETIME, price_id INTEGER, affordable INTEGER, 
	CONSTRAINT pk_run_tier PRIMARY KEY (run_id, position), 
	CONSTRAINT fk_run_tier_judge_id_judge FOREIGN KEY(judge_id) REFERENCES judge (id), 
	CONSTRAINT fk_run_tier_policy_id_policy FOREIGN KEY(policy_id) REFERENCES policy (id), 
	CONSTRAINT fk_run_tier_run_id_run FOREIGN KEY(run_id) REFERENCES run (id)
);
INSERT INTO "run_tier" VALUES(1,0,'small',1,1,0,'done',NULL,1.2131622639999477542e+00,9.47133507999751600436e-01,NULL,NULL,'2026-11-26 02:50:28.195311','2026-11-26 02:50:29.410596',NULL,NULL);
INSERT INTO "run_tier" VALUES(1,1,'large',2,2,1,'running',NULL,0.0,NULL,NULL,NULL,'2026-11-26 02:50:29.441091',NULL,NULL,NULL);
CREATE TABLE text (
	id INTEGER NOT NULL, 
	digest BLOB NOT NULL, 
	body TEXT NOT NULL, 
	CONSTRAINT pk_text PRIMARY KEY (id), 
	CONSTRAINT uq_text_digest UNIQUE (digest)
);
INSERT INTO "text" VALUES(1,X'74F36821870C740FC0F06FBB94C9754A','text: text 0');
INSERT INTO "text" VALUES(2,X'8F7CB6A3B1BE0C56C2B4814C05317CD0','text: text 1');
INSERT INTO "text" VALUES(3,X'0005933BF433EC213998F0F147C33B7C','text: text 2');
INSERT INTO "text" VALUES(4,X'8255F414BAA17221A48ABA652DB2A6D6','text: text 3');
INSERT INTO "text" VALUES(5,X'64AFC96490C7452F7095A4FBA745FC2B','text: text 4');
INSERT INTO "text" VALUES(6,X'34E2F1828080804281788E0E85DD8D0C','text: text 5');
INSERT INTO "text" VALUES(7,X'9156654A53E9965DF3C228BA6C865E02','text: text 6');
INSERT INTO "text" VALUES(8,X'4BEFA0BFF4395CE546725B8AD2B3E158','text: text 7');
INSERT INTO "text" VALUES(9,X'364C9E3F3B811C12BF05961CF18052E5','text: text 8');
INSERT INTO "text" VALUES(10,X'B52738A6B195F5E0238824FC56E9E6CE','text: text 9');
INSERT INTO "text" VALUES(11,X'2124713D044C1223661D5B17AF65FB80','text: text 10');
INSERT INTO "text" VALUES(12,X'BC9B5AF9B30FDEEC1FB521647F867B3B','text: text 11');
INSERT INTO "text" VALUES(13,X'DB269013B64920B11C1F6D7C8E5DA96E','text: text 12');
INSERT INTO "text" VALUES(14,X'CDA6A404D4DC16579A5EC91D7BE6D3A3','text: text 13');
INSERT INTO "text" VALUES(15,X'CBE3CD9317A639FDDAAFB7B9DEE6E677','text: text 14');
INSERT INTO "text" VALUES(16,X'23C4FBC94779A95781064F72B08F731B','text: text 15');
INSERT INTO "text" VALUES(17,X'027C46EDA34F5637209FE6CDD368540A','text: text 16');
INSERT INTO "text" VALUES(18,X'50C18DD81047B06306BC18B91E8CD4A3','text: text 17');
INSERT INTO "text" VALUES(19,X'A437E4A5EBD46310FA65B0D11460B2CC','text: text 18');
INSERT INTO "text" VALUES(20,X'8FF82E95A24098C9218BC7D091C7561D','text: text 19');
INSERT INTO "text" VALUES(21,X'E3361CAC13146B806F15BC47707CA18F','text: text 20');
INSERT INTO "text" VALUES(22,X'F75B285C4A40C2F38460A799CF67A277','text: text 21');
INSERT INTO "text" VALUES(23,X'2E43D864B3F79E4211E0DB9D33C94B54','text: text 22');
INSERT INTO "text" VALUES(24,X'A925680D6905245FD8A569C4B19BD62F','text: text 23');
INSERT INTO "text" VALUES(25,X'53DFAC69271DE127973F95576FBB5B08','text: text 24');
INSERT INTO "text" VALUES(26,X'55E71D7E2547720F54AFC7ECECD36291','text: text 25');
INSERT INTO "text" VALUES(27,X'76BD6A62F828D7958A9D8E98141CB923','text: text 26');
INSERT INTO "text" VALUES(28,X'3287CB00A7010A34C6889C615314194F','text: text 27');
INSERT INTO "text" VALUES(29,X'12E09AC7E3EDDF3EAC3442E4FF2D1A80','text: text 28');
INSERT INTO "text" VALUES(30,X'5781D843C95BB35F4A4259314F890304','text: text 29');
INSERT INTO "text" VALUES(31,X'09B7F88609453D52B1401B2F1684D6FC','text: text 30');
INSERT INTO "text" VALUES(32,X'98EE50F5BAAC299D022EDCD01E6E40A4','text: text 31');
INSERT INTO "text" VALUES(33,X'812E6E97014389BCC7F6B4D81CE84FBF','text: text 32');
INSERT INTO "text" VALUES(34,X'4F5749FD0E3A95C58CED8652C0B99158','text: text 33');
INSERT INTO "text" VALUES(35,X'380DDFB5DDBD58AF81AF8196F14DD0B9','text: text 34');
INSERT INTO "text" VALUES(36,X'AD35D2405796979B5CFDCEA3FDB51B88','text: text 35');
INSERT INTO "text" VALUES(37,X'878F43A18C7948530904FF3583502398','text: text 36');
INSERT INTO "text" VALUES(38,X'4552EF85A06043278C4C3513B081F223','text: text 37');
INSERT INTO "text" VALUES(39,X'53E7A51901BC82AF80E44BD90B45C71C','text: text 38');
INSERT INTO "text" VALUES(40,X'79CF47B2A73C36670AD428E0E6CFFE1E','text: text 39');
CREATE TABLE verdict (
	run_id INTEGER NOT NULL, 
	candidate_id INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	outcome VARCHAR(16), 
	why TEXT, 
	ingest INTEGER NOT NULL, since INTEGER DEFAULT 0 NOT NULL, 
	CONSTRAINT pk_verdict PRIMARY KEY (run_id, candidate_id), 
	CONSTRAINT fk_verdict_candidate_id_candidate FOREIGN KEY(candidate_id) REFERENCES candidate (id), 
	CONSTRAINT fk_verdict_run_id_run FOREIGN KEY(run_id) REFERENCES run (id)
)
 WITHOUT ROWID

;
INSERT INTO "verdict" VALUES(1,1,1,NULL,NULL,1,1);
INSERT INTO "verdict" VALUES(1,2,1,NULL,NULL,1,1);
INSERT INTO "verdict" VALUES(1,3,1,NULL,NULL,1,1);
INSERT INTO "verdict" VALUES(1,4,1,NULL,NULL,1,1);
INSERT INTO "verdict" VALUES(1,5,0,'reject',NULL,1,1);
INSERT INTO "verdict" VALUES(1,6,0,'reject',NULL,1,1);
INSERT INTO "verdict" VALUES(1,7,0,'reject',NULL,1,1);
INSERT INTO "verdict" VALUES(1,8,0,'reject',NULL,1,1);
INSERT INTO "verdict" VALUES(1,9,0,'reject',NULL,1,1);
INSERT INTO "verdict" VALUES(1,10,1,NULL,NULL,1,1);
INSERT INTO "verdict" VALUES(1,11,1,NULL,NULL,1,1);
INSERT INTO "verdict" VALUES(1,12,1,NULL,NULL,1,1);
INSERT INTO "verdict" VALUES(1,13,1,NULL,NULL,1,1);
INSERT INTO "verdict" VALUES(1,14,1,NULL,NULL,1,1);
INSERT INTO "verdict" VALUES(1,15,1,NULL,NULL,1,1);
INSERT INTO "verdict" VALUES(1,16,0,'reject',NULL,1,1);
INSERT INTO "verdict" VALUES(1,17,0,'reject',NULL,1,1);
INSERT INTO "verdict" VALUES(1,18,0,'reject',NULL,1,1);
INSERT INTO "verdict" VALUES(1,19,0,'reject',NULL,1,1);
INSERT INTO "verdict" VALUES(1,20,0,'reject',NULL,1,1);
INSERT INTO "verdict" VALUES(1,21,1,NULL,NULL,1,1);
INSERT INTO "verdict" VALUES(1,22,1,NULL,NULL,1,1);
INSERT INTO "verdict" VALUES(1,23,1,NULL,NULL,1,1);
INSERT INTO "verdict" VALUES(1,24,1,NULL,NULL,1,1);
INSERT INTO "verdict" VALUES(1,25,0,'reject',NULL,1,1);
INSERT INTO "verdict" VALUES(1,26,0,'reject',NULL,1,1);
INSERT INTO "verdict" VALUES(1,27,0,'reject',NULL,1,1);
INSERT INTO "verdict" VALUES(1,28,0,'reject',NULL,1,1);
INSERT INTO "verdict" VALUES(1,29,0,'reject',NULL,1,1);
INSERT INTO "verdict" VALUES(1,30,1,NULL,NULL,1,1);
INSERT INTO "verdict" VALUES(1,31,1,NULL,NULL,1,1);
INSERT INTO "verdict" VALUES(1,32,1,NULL,NULL,1,1);
INSERT INTO "verdict" VALUES(1,33,1,NULL,NULL,1,1);
INSERT INTO "verdict" VALUES(1,34,0,'reject',NULL,1,1);
INSERT INTO "verdict" VALUES(1,35,0,'reject',NULL,1,1);
INSERT INTO "verdict" VALUES(1,36,0,'reject',NULL,1,1);
INSERT INTO "verdict" VALUES(1,37,0,'reject',NULL,1,1);
INSERT INTO "verdict" VALUES(1,38,0,'reject',NULL,1,1);
INSERT INTO "verdict" VALUES(1,39,1,NULL,NULL,1,1);
INSERT INTO "verdict" VALUES(1,40,1,NULL,NULL,1,1);
CREATE INDEX ix_run_screen ON run (screen);
CREATE INDEX ix_bad_row_run_id ON bad_row (run_id);
CREATE INDEX ix_candidate_text_id ON candidate (text_id);
CREATE INDEX ix_judgement_run_id_judge_id ON judgement (run_id, judge_id);
CREATE VIEW result AS SELECT
  run.key AS run,
  run.screen AS screen,
  candidate.key AS key,
  CASE verdict.outcome
    WHEN 'accept' THEN 'accepted'
    WHEN 'reject' THEN 'rejected'
    WHEN 'review' THEN 'review'
    WHEN 'failed' THEN 'failed'
    ELSE 'pending'
  END AS verdict,
  run_tier.name AS tier,
  judgement.score AS score,
  judgement.reading AS reading,
  verdict.why AS why,
  candidate_fields.fields AS fields,
  text.body AS text
FROM run
JOIN verdict ON verdict.run_id = run.id
LEFT JOIN candidate ON candidate.id = verdict.candidate_id
LEFT JOIN candidate_fields ON candidate_fields.candidate_id = verdict.candidate_id
LEFT JOIN run_tier ON run_tier.run_id = verdict.run_id AND run_tier.position = verdict.position
LEFT JOIN text ON text.id = candidate.text_id
LEFT JOIN judgement
  ON judgement.judge_id = run_tier.judge_id AND judgement.text_id = candidate.text_id;
CREATE INDEX ix_batch_run_id ON batch (run_id);
CREATE INDEX ix_batch_line_text_id ON batch_line (text_id);
CREATE VIEW funnel AS SELECT
  run,
  position,
  tier,
  CAST(SUM(reached) AS BIGINT) AS reached,
  CAST(SUM(paid) AS BIGINT) AS judged,
  CAST(CASE WHEN SUM(answered) > SUM(paid) THEN SUM(answered) - SUM(paid) ELSE 0 END AS BIGINT)
    AS reused,
  CAST(SUM(promoted) AS BIGINT) AS promoted,
  CAST(SUM(accepted) AS BIGINT) AS accepted,
  CAST(SUM(rejected) AS BIGINT) AS rejected,
  CAST(SUM(review) AS BIGINT) AS review,
  CAST(SUM(failed) AS BIGINT) AS failed,
  CAST(SUM(pending) AS BIGINT) AS pending,
  CAST(SUM(prompt_tokens) AS BIGINT) AS prompt_tokens,
  CAST(SUM(cached_tokens) AS BIGINT) AS cached_tokens,
  CAST(SUM(completion_tokens) AS BIGINT) AS completion_tokens,
  MAX(seconds) AS seconds,
  MAX(state) AS state,
  CAST(SUM(reasoning_tokens) AS BIGINT) AS reasoning_tokens,
  CASE WHEN SUM(unpriced) = 0 THEN SUM(usd) + MAX(seconds) * MAX(usd_an_hour) / 3600 END AS usd
FROM (
  SELECT
    run.key AS run,
    run_tier.position AS position,
    run_tier.name AS tier,
    run_tier.seconds AS seconds,
    run_tier.state AS state,
    COUNT(verdict.candidate_id) AS reached,
    COUNT(judgement.text_id) AS answered,
    COUNT(CASE WHEN verdict.position > run_tier.position THEN 1 END) AS promoted,
    COUNT(CASE WHEN verdict.position = run_tier.position AND verdict.outcome = 'accept'
      THEN 1 END) AS accepted,
    COUNT(CASE WHEN verdict.position = run_tier.position AND verdict.outcome = 'reject'
      THEN 1 END) AS rejected,
    COUNT(CASE WHEN verdict.position = run_tier.position AND verdict.outcome = 'review'
      THEN 1 END) AS review,
    COUNT(CASE WHEN verdict.position = run_tier.position AND verdict.outcome = 'failed'
      THEN 1 END) AS failed,
    COUNT(CASE WHEN verdict.position = run_tier.position AND verdict.outcome IS NULL
      THEN 1 END) AS pending,
    0 AS paid,
    0 AS prompt_tokens,
    0 AS cached_tokens,
    0 AS completion_tokens,
    0 AS reasoning_tokens,
    0 AS unpriced,
    0.0 AS usd,
    COALESCE(price.hour, 0.0) AS usd_an_hour
  FROM run
  JOIN run_tier ON run_tier.run_id = run.id
  LEFT JOIN price ON price.id = run_tier.price_id
  LEFT JOIN verdict
    ON verdict.run_id = run_tier.run_id AND verdict.position >= run_tier.position
  LEFT JOIN candidate ON candidate.id = verdict.candidate_id
  LEFT JOIN judgement
    ON judgement.judge_id = run_tier.judge_id AND judgement.text_id = candidate.text_id
  GROUP BY run.key, run_tier.position, run_tier.name, run_tier.seconds, run_tier.state, price.hour
  UNION ALL
  SELECT
    run.key, run_tier.position, run_tier.name, run_tier.seconds, run_tier.state,
    0, 0, 0, 0, 0, 0, 0, 0,
    COUNT(*),
    SUM(judgement.prompt_tokens),
    SUM(judgement.cached_tokens),
    SUM(judgement.completion_tokens),
    SUM(judgement.reasoning_tokens),
    COUNT(*) - COUNT(price.id),
    SUM(((judgement.prompt_tokens - judgement.cached_tokens) * price.input
      + judgement.cached_tokens * price.cached_input
      + judgement.completion_tokens * price.output) / 1000000),
    0.0
  FROM run
  JOIN run_tier ON run_tier.run_id = run.id
  JOIN judgement
    ON judgement.run_id = run_tier.run_id AND judgement.judge_id = run_tier.judge_id
  LEFT JOIN price ON price.id = judgement.price_id
  WHERE NOT EXISTS (
    SELECT 1 FROM run_tier AS earlier
    WHERE earlier.run_id = run_tier.run_id
      AND earlier.judge_id = run_tier.judge_id
      AND earlier.position < run_tier.position
  )
  GROUP BY run.key, run_tier.position, run_tier.name, run_tier.seconds, run_tier.state
) AS counts
GROUP BY run, position, tier;
CREATE VIEW judgement_detail AS SELECT
  run.key AS run,
  candidate.key AS key,
  run_tier.position AS position,
  run_tier.name AS tier,
  judgement.score AS score,
  judgement.reading AS reading,
  judgement.mass AS mass,
  CASE
    WHEN verdict.position > run_tier.position THEN 'promote'
    WHEN verdict.outcome IS NULL THEN 'pending'
    ELSE verdict.outcome
  END AS outcome,
  judgement.error AS error,
  judgement.note AS note,
  judgement.prompt_tokens AS prompt_tokens,
  judgement.cached_tokens AS cached_tokens,
  judgement.completion_tokens AS completion_tokens,
  judgement.seconds AS seconds,
  (judgement.run_id <> run.id
    OR EXISTS (
      SELECT 1 FROM candidate AS twin CROSS JOIN verdict AS twin_verdict
      WHERE twin.text_id = judgement.text_id
        AND twin.id < candidate.id
        AND twin_verdict.run_id = run.id
        AND twin_verdict.candidate_id = twin.id
        AND twin_verdict.position >= run_tier.position
    )
    OR EXISTS (
      SELECT 1 FROM run_tier AS earlier
      WHERE earlier.run_id = run.id
        AND earlier.judge_id = run_tier.judge_id
        AND earlier.position < run_tier.position
    )
  ) AS reused,
  judgement.judged_at AS judged_at,
  judge.description AS judge,
  judgement.reasoning_tokens AS reasoning_tokens,
  CASE WHEN price.hour = 0 THEN
    ((judgement.prompt_tokens - judgement.cached_tokens) * price.input
      + judgement.cached_tokens * price.cached_input
      + judgement.completion_tokens * price.output) / 1000000
  END AS usd
FROM run
JOIN run_tier ON run_tier.run_id = run.id
JOIN judge ON judge.id = run_tier.judge_id
JOIN verdict ON verdict.run_id = run_tier.run_id AND verdict.position >= run_tier.position
JOIN candidate ON candidate.id = verdict.candidate_id
JOIN judgement
  ON judgement.judge_id = run_tier.judge_id AND judgement.text_id = candidate.text_id
LEFT JOIN price ON price.id = judgement.price_id;
CREATE INDEX ix_policy_run_id ON policy (run_id);
COMMIT;
