"""Words the generators of `math` and `json` share."""

PEOPLE = {
    "Mia": "She", "Leo": "He", "Ana": "She", "Tom": "He", "Zoe": "She", "Max": "He", "Eva": "She", "Sam": "He", "Ida": "She", "Ben": "He",
    "Lea": "She", "Jan": "He", "Amy": "She", "Kai": "He", "Nora": "She", "Paul": "He", "Rosa": "She", "Omar": "He", "Lucy": "She", "Hugo": "He",
}  # fmt: skip
ITEMS = ["pears", "books", "coins", "cards", "eggs", "pens", "shells", "stamps", "nuts", "keys", "cups", "plums", "bells", "toys", "rings", "maps"]
CITIES = ["Oslo", "Rome", "Paris", "Lima", "Cairo", "Delhi", "Kyoto", "Quito", "Bern", "Dakar", "Perth", "Miami"]
JOBS = ["nurse", "baker", "pilot", "judge", "cook", "singer", "farmer", "painter", "tailor", "teacher"]
HOBBIES = ["chess", "tennis", "art", "music", "golf", "yoga", "running", "cooking", "poetry", "dance"]
PETS = ["cat", "dog", "bird", "horse", "rabbit", "snake"]
PET_NAMES = ["Rex", "Bo", "Luna", "Milo", "Coco", "Ziggy", "Pip", "Nala"]
TEAMS = ["red", "blue", "green", "gold", "black", "white"]
