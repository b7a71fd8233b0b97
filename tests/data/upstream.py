"""Small hand-made logs in upstream layouts, with what upstream and the world put into them.

Each function writes one source under ``folder`` and returns what ``raw=`` takes. The comments name the traps.
"""

import gzip
import json
from pathlib import Path

KUAIRAND_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
)
KUAIRAND_USERS_HEADER = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
    "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,"
    "register_days,register_days_range," + ",".join(f"onehot_feat{number}" for number in range(18)) + "\n"
)
CODES = "1,2,3,4.0,5,6,7,8,9,10,11,0.0,,1.0,0.0,1.0,0.0"


def kuairand(folder: Path) -> Path:
    data = folder / "KuaiRand-Pure" / "data"
    data.mkdir(parents=True)
    # 1650988800000 is 2022-04-27T00:00:00+08:00
    standard = (
        KUAIRAND_HEADER
        + "7,1,20220426,1200,1650945600123,1,0,0,0,1,0,1,20000,15000,0,0,1,0,1\n"
        + "7,1,20220426,1200,1650945600123,1,0,0,0,1,0,1,20000,15000,0,0,1,0,1\n"  # an exact duplicate
        + "7,1,20220426,1200,1650945600123,1,0,0,0,1,0,1,20000,15000,0,9,1,0,1\n"  # not quite a duplicate
        + "7,2,20220427,0,1650985200000,0,0,0,0,0,1,0,10,15000,0,0,0,0,4\n"  # 23:00 the evening before
        + "7,3,20220427,0,1650985200001,0,0,0,0,0,0,0,10,15000,0,0,0,0,4\n"  # and one ms later
        + ",2,20220427,0,1650990000000,0,0,0,0,0,0,0,10,15000,0,0,0,0,4\n"  # no user
        + "7,2,20220427,0,,0,0,0,0,0,0,0,10,15000,0,0,0,0,4\n"  # no time
        + "7,2,19700101,0,0,0,0,0,0,0,0,0,10,15000,0,0,0,0,4\n"  # 1970
        + "7,2,22861121,0,9999999999999,0,0,0,0,0,0,0,10,15000,0,0,0,0,4\n"  # 2286
    )
    part = (
        KUAIRAND_HEADER
        + "7,1,20220426,1200,1650945600123,1,0,0,0,1,0,1,20000,15000,0,0,1,0,1\n"  # again, in another file
        + "8,99,20220428,100,1651080000000,1,1,0,0,0,0,0,-1,15000,0,0,0,0,0\n"  # a video without features
    ).replace("\n", "\r\n")
    random = KUAIRAND_HEADER + "8,1,20220428,100,1651080001000,0,0,0,0,0,0,0,5,15000,0,0,0,1,0\n"
    history = (
        KUAIRAND_HEADER
        + "8,2,20220409,1300,1649483768861,,0,,,,,0,,,,,,0,\n"
        + "8,2,20220410,1300,1649483769861,,1,,,,,1,,,,,,0,\n"  # date is a placeholder as well
    )
    (data / "log_standard_4_22_to_5_08_pure.csv").write_text(standard)
    (data / "log_standard_4_08_to_4_21_pure_part2.csv").write_text(part, newline="")
    (data / "log_random_4_22_to_5_08_pure.csv").write_text(random)
    (data / "log_history_4_09_to_4_24_pure.csv.gz").write_bytes(gzip.compress(history.encode()))
    (data / "video_features_basic_pure.csv").write_text(
        "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,"
        "server_height,music_id,music_type,tag\n"
        '1,70,NORMAL,2022-04-10,LongImport,0.0,15000.0,720.0,1280.0,9155697141,9.0,"12,65"\n'
        "2,9007199254740993,AD,2022-04-09,Kmovie,0.0,,720.0,1280.0,0,,\n"  # an id above 2**53; blanks
        "3,71,NORMAL,not a day,Kmovie,0.0,0.0,720.0,1280.0,0,4.0,7\n"
    )
    (data / "video_features_statistic_pure.csv").write_text("the future, in a form that does not parse\n")
    (data / "user_features_pure.csv").write_text(
        KUAIRAND_USERS_HEADER
        + f'7,full_active,0,-124,1,514,500+,150,"[100,1k)",34,"[30,60)",799,730+,1,{CODES}\n'
        + f"8,UNKNOWN,0,1,1,0,0,0,0,0,0,14,15-30,0,{CODES}\n"
    )
    (data / "kuairand_video_captions.csv").write_text(
        'final_video_id,caption,show_cover_text,duration\n1,"#王者荣耀 ""妲己"",\n第二行",,1.0\n2,,x,\n'
    )
    (data / "kuairand_video_categories.csv").write_text(
        "final_video_id,first_level_category_id,first_level_category_name,second_level_category_name\n"
        "1,7.0,运动,球类运动\n2,-124.0,UNKNOWN,UNKNOWN\n"
    )
    return folder / "KuaiRand-Pure"


def kuairec(folder: Path) -> Path:
    header = "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio\n"
    (folder / "big_matrix.csv").write_text(
        header
        + "14,148,4381,6067,2020-07-05 05:27:48.378,20200705,1593898068.378,0.72\n"
        + "14,148,4381,6067,2020-07-05 05:27:48.378,20200705,1593898068.378,0.72\n"
        + "14,183,11635,6100,2020-07-05 05:28:00.057,20200705,1593898080.057,1.9\n"
        + "15,183,20000,60000,,,,0.3\n"  # upstream's rows without time
    )
    (folder / "small_matrix.csv").write_text(
        header + "15,148,18000,60000,2020-07-06 00:00:00,20200706,1593964800.0,0.3\n"
    )
    (folder / "item_categories.csv").write_text('video_id,feat\n148,"[27, 9]"\n183,[8]\n')
    (folder / "item_daily_features.csv").write_text(
        "video_id,date,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,video_width,"
        "video_height,music_id,video_tag_id,video_tag_name,show_cnt\n"
        "148,20200706,3309,NORMAL,2020-03-30,Later,public,6067,720,1280,3350323409,39,家居,1\n"
        "148,20200705,3309,NORMAL,2020-03-30,ShortImport,public,6067,720,1280,-1,39,家居,9\n"
    )
    (folder / "kuairec_caption_category.csv").write_text(
        "video_id,manual_cover_text,caption,topic_tag,first_level_category_id,first_level_category_name,"
        "second_level_category_id,second_level_category_name\n"
        '148,UNKNOWN,"精神小伙路难走 ""程哥""你狗粮慢点撒\n第二行",[],8,颜值,673,颜值随拍\n'
    )
    (folder / "user_features.csv").write_text(
        KUAIRAND_USERS_HEADER + f'14,full_active,0,0,0,5,"(0,10]",4,"[1,10)",0,0,107,91-180,0,{CODES}\n'
    )
    return folder


def microlens(folder: Path) -> Path:
    (folder / "MicroLens-50k_pairs.csv").write_text(
        "user,item,timestamp\n36121,9580,1583378629552\n36121,9580,1583378629552\n1,2,1583436719018\n1,3,17\n"
    )
    (folder / "MicroLens-50k_pairs.tsv").write_text("36121\t9580 2\n")
    (folder / "MicroLens-50k_titles.csv").write_text('item,title\n9580,"a ""quoted"", é\ntitle"\n2,\n')
    return folder


def microlens_tsv(folder: Path) -> Path:
    (folder / "MicroLens-100k_pairs.tsv").write_text("1\t11 12 13 14\n2\t12 11\n")
    return folder


def taobao_user_behavior(folder: Path) -> Path:
    (folder / "UserBehavior.csv").write_text(
        "1,2268318,2520377,pv,1511544070\n"
        "1,2268318,2520377,pv,1511544070\n"
        "1,2268318,2520377,buy,1511544071\n"
        "2,3,4,fav,1511539199\n"  # one second before the first day
        "2,3,4,fav,1511539200\n"
        "2,3,4,cart,1512316799\n"
        "2,3,4,cart,1512316800\n"  # one second after the last
        "2,3,4,pv,2122867355\n"  # 2037
        "2,3,4,pv,-1511544070\n"
        "2,3,4,view,1511544070\n"  # no such behaviour
    )
    return folder


def taobao_ecomm(folder: Path) -> Path:
    (folder / "ecomm_edge_train.txt").write_text(
        "10\t500\t1\t20190616\n10\t501\t3\t20190616\n10\t500\t1\t20190616\n"
        "10\t500\t4\t20190617\n11\t777\t2\t20190610\n11\t777\t9\t20190610\n11\t777\t2\t20191399\n"
    )
    (folder / "ecomm_item_feature.txt").write_text(
        "500\t33\t50002833\t0\t21.8\n501\t33\t50002835\t88\t0.29\n"
    )
    (folder / "ecomm_user_feature.txt").write_text(
        "10\t1\t5\t-1\t10\t15203.1\t1,6,4\n11\t0\t-1\t-1\t9\t-1\t-1\n"
    )
    return folder


def retailrocket(folder: Path) -> Path:
    (folder / "events.csv").write_text(
        "timestamp,visitorid,event,itemid,transactionid\n"
        "1433221332117,257597,view,355908,\n"
        "1433221332117,257597,view,355908,\n"
        "1433222276276,599528,transaction,356475,4000\n"
        "1433222276277,599528,addtocart,5206,\n"
        "1433222276278,599528,wishlist,5206,\n"
    )
    (folder / "item_properties_part1.csv").write_text(
        "timestamp,itemid,property,value\n"
        "1435460400000,355908,categoryid,2\n"
        "1433041200000,355908,categoryid,1\n"
        "1433041200000,356475,888,1116713 960601 n277.200\n"
    )
    (folder / "item_properties_part2.csv").write_text(
        "timestamp,itemid,property,value\n1433041200000,9,available,0\n"
    )
    (folder / "category_tree.csv").write_text("categoryid,parentid\n1,1016\n2,\n")
    return folder


def otto(folder: Path) -> Path:
    sessions = [
        {"session": 0, "events": [
            {"aid": 5, "ts": 1659304800025, "type": "clicks"},
            {"aid": 5, "ts": 1659304800025, "type": "clicks"},
            {"aid": 6, "ts": 1659304904511, "type": "carts"},
            {"aid": 6, "ts": 1659304904512, "type": "orders"},
        ]},
        {"session": 1, "events": [
            {"aid": 7, "ts": 17, "type": "clicks"},
            {"aid": 7, "ts": 1659304904511, "type": "?"},
        ]},
        {"session": 2, "events": []},
    ]  # fmt: skip
    (folder / "train.jsonl").write_text("".join(json.dumps(session) + "\n" for session in sessions))
    last = {"session": 3, "events": [{"aid": 7, "ts": 1661724000000, "type": "clicks"}]}
    (folder / "test.jsonl.gz").write_bytes(gzip.compress((json.dumps(last) + "\n").encode()))
    return folder


def movielens_100k(folder: Path) -> Path:
    (folder / "u.data").write_text("196\t242\t3\t881250949\n196\t1\t5\t881250949\n1\t242\t4\t0\n")
    flags = ["0"] * 19
    both = ["1" if number in (3, 5) else "0" for number in range(19)]
    (folder / "u.item").write_bytes(
        (
            f'1|Toy Story (1995)|01-Jan-1995||http://x?"q"|{"|".join(both)}\n'
            f"242|Misérables, Les (1995)|01-Jan-1995|||{'|'.join(flags)}\n"
            f"267|unknown||||1|{'|'.join(flags[1:])}\n"
        ).encode("latin-1")
    )
    (folder / "u.user").write_text("196|49|M|writer|55105\n1|24|F|other|T8H1N\n")
    return folder


def movielens_1m(folder: Path) -> Path:
    (folder / "ratings.dat").write_text("1::1193::5::978300760\n1::661::3::978302109\n1::661::3::978302109\n")
    (folder / "movies.dat").write_bytes(
        "661::James and the Giant Peach (1996)::Animation|Children's|Musical\n"
        "1193::L'Été: 'One' \"Flew\" (1975)::Drama\n".encode("latin-1")
    )
    (folder / "users.dat").write_text("1::F::1::10::48067\n")
    return folder


def movielens_25m(folder: Path) -> Path:
    (folder / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n1,296,5.0,1147880044\n1,306,3.5,1147868817\n2,306,4.0,1147868817\n"
    )
    (folder / "movies.csv").write_text(
        'movieId,title,genres\n296,"Fiction, ""Pulp"" (1994)",Comedy|Crime\n306,Three Colors: Красный,'
        "(no genres listed)\n"
    )
    (folder / "tags.csv").write_text("userId,movieId,tag,timestamp\n")
    return folder


def recbole(folder: Path) -> Path:
    (folder / "shop.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "u1\t007\t4.5\t1583378629552\nu1\t007\t4.5\t1583378629552\nu2\t8\t\t1583378629553\n"
    )
    (folder / "shop.item").write_text(
        "item_id:token\ttitle:token_seq\tgenre:token_seq\tprice:float\tvector:float_seq\ttags:token\n"
        '007\tA "quoted\tx y\t1.5\t1 2\tspy\n8\t\t\t\t\t\n9\tUnseen\tz\t2\t\t\n'
    )
    (folder / "shop.user").write_text("user_id:token\tage:float\nu1\t33\nu2\t\n")
    return folder


def sequence(folder: Path) -> Path:
    (folder / "Beauty.txt").write_text("1 10 11 10 12\n2 11 12\n\n3\t13  10 11 \n")
    (folder / "Beauty_item2attributes.json").write_text('{"10": [3, 1], "11": [], "99": [4]}')
    return folder / "Beauty.txt"


def sequence_sets(folder: Path) -> Path:
    (folder / "train.txt").write_text("0 " + " ".join(str(video) for video in range(20)) + "\n1 3 3 4\n2\n")
    (folder / "test.txt").write_text("0 20 21\n1 5\n")
    return folder


def openbandit(folder: Path) -> Path:
    header = (
        ",timestamp,item_id,position,click,propensity_score,"
        + ",".join(f"user_feature_{number}" for number in range(4))
        + ",user-item_affinity_0\n"
    )
    row = "{},2019-11-24 {}+00:00,{},{},{},{},a,b,c,{},0.0\n"
    rows = {
        "random": [
            row.format(0, "00:00:17.004101", 5, 1, 1, 0.0125, "d"),
            row.format(1, "00:00:18", 6, 3, 0, 0.0125, ""),
        ],
        "bts": [row.format(0, "00:00:17.5", 5, 2, 0, 0.087125, "e")],
    }  # fmt: skip
    for policy, lines in rows.items():
        campaign = folder / "obd" / policy / "men"
        campaign.mkdir(parents=True)
        (campaign / "men.csv").write_text(header + "".join(lines))
        (campaign / "item_context.csv").write_text(
            ",item_id,item_feature_0,item_feature_1,item_feature_2,item_feature_3\n"
            f"0,5,-0.5,{policy}1,x,y\n1,6,0.25,{policy}2,x,z\n"
        )
    return folder / "obd"


#: name → (source=, what writes it)
UPSTREAM = {
    "kuairand": ("kuairand", kuairand),
    "kuairec": ("kuairec", kuairec),
    "microlens": ("microlens", microlens),
    "microlens_tsv": ("microlens", microlens_tsv),
    "taobao_user_behavior": ("taobao", taobao_user_behavior),
    "taobao_ecomm": ("taobao", taobao_ecomm),
    "retailrocket": ("retailrocket", retailrocket),
    "otto": ("otto", otto),
    "movielens_100k": ("movielens", movielens_100k),
    "movielens_1m": ("movielens", movielens_1m),
    "movielens_25m": ("movielens", movielens_25m),
    "recbole": ("recbole", recbole),
    "sequence": ("sequence", sequence),
    "sequence_sets": ("sequence", sequence_sets),
    "openbandit": ("openbandit", openbandit),
}
